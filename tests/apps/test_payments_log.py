import errno
import os
import shutil
import threading
from concurrent.futures import wait

import pytest
import torch

from apps.payments.log import manifest, parquet_log, record_log
from apps.payments.log.parquet_log import PARTITIONS, ParquetLog, recover
from apps.payments.log.reading import parquet_files, scan
from apps.payments.log.schema import decision_schema, reward_schema, transaction_key
from apps.payments.log.tables import contexts, mask_column, masks
from core.errors import InputError
from simulators.payments.context import Sizes
from tests.apps.payments_log_cases import DAY, NOON, decisions, payments, rewards, saved_policy

pa = pytest.importorskip("pyarrow")
pytest.importorskip("polars")
parquet = pytest.importorskip("pyarrow.parquet")


def opened(folder, **options):
    return ParquetLog(folder / "decisions", decision_schema(32), PARTITIONS["decisions"], **options)


def batch(tmp_path, start, count, time=NOON, generation=3):
    policy = saved_policy(tmp_path / f"policy_{generation}", f"igw-{generation}", generation)
    return decisions(policy, [f"t{i}" for i in range(start, start + count)], [time] * count)


def ids(folder):
    """All decision ids that a reader finds, in the order of the files."""
    paths, _ = parquet_files(folder / "decisions")
    return [key for path in paths for key in parquet.read_table(path, partitioning=None)["decision_id"].to_pylist()]


def expected(start, count):
    return [transaction_key("shop", f"t{i}") for i in range(start, start + count)]


def kill(log, tmp_path):
    """A copy of the log's files as they are at this moment: what a kill would leave."""
    place = tmp_path / f"killed_{len(list(tmp_path.glob('killed_*')))}"
    shutil.copytree(log.folder, place / "decisions")
    log.close()
    return place


def test_what_was_committed_is_in_parquet_after_close_by_generation_and_date(tmp_path):
    log = opened(tmp_path)
    parts = [batch(tmp_path, 0, 5), batch(tmp_path, 5, 4, NOON + DAY), batch(tmp_path, 9, 3, generation=4)]
    for part in parts:
        log.append(part).result(5)
    log.close()
    written = manifest.read(tmp_path / "decisions")
    places = sorted((entry.path.rsplit("/", 1)[0], entry.rows) for entry in written.files)
    assert places == [
        ("policy_generation=3/date=2026-03-01", 5),
        ("policy_generation=3/date=2026-03-02", 4),
        ("policy_generation=4/date=2026-03-01", 3),
    ]
    assert sorted(ids(tmp_path)) == sorted(expected(0, 12))
    table = pa.concat_tables(
        parquet.read_table(tmp_path / "decisions" / entry.path, partitioning=None) for entry in written.files
    )
    assert table.schema.equals(decision_schema(32))
    assert table.sort_by("decision_id") == pa.Table.from_batches(parts).sort_by("decision_id")
    assert not list((tmp_path / "decisions" / "segments").iterdir())


@pytest.mark.parametrize("actions", [32, 64, 256])
def test_masks_and_contexts_come_back_as_they_were(actions):
    sizes = Sizes(flags=actions.bit_length() - 1)
    context, mask = payments(50, sizes=sizes)
    table = pa.table({"mask": mask_column(mask), **{n: pa.array(c.numpy()) for n, c in context.columns().items()}})
    assert table["mask"].type == (pa.uint64() if actions <= 64 else pa.list_(pa.int16()))
    assert torch.equal(masks(table, actions), mask)
    back = contexts(table)
    assert all(torch.equal(getattr(back, name), column) for name, column in context.columns().items())
    # A part of a table begins in the middle of its buffers.
    assert torch.equal(masks(table.slice(20, 9), actions), mask[20:29])


def test_masks_of_bit_fields_are_those_of_the_simulator():
    table = pa.table({"allowed": pa.array([0b101, 0], pa.uint16()), "forced": pa.array([0b001, 0], pa.uint16())})
    assert masks(table, 32).nonzero().tolist() == [[0, 1], [0, 5], [1, 0]]


def test_masks_with_actions_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match=r"mask\[1\]: has actions beyond the 32"):
        masks(pa.table({"mask": pa.array([1, 1 << 32], pa.uint64())}), 32)
    with pytest.raises(InputError, match=r"mask\[0\]"):
        masks(pa.table({"mask": pa.array([[3, 256], [1]], pa.list_(pa.int16()))}), 256)
    with pytest.raises(InputError, match="at most 64 actions, here are 128"):
        decision_schema(128, "bits")


def test_a_segment_replays_to_what_was_appended_and_stops_at_every_kind_of_tear(tmp_path):
    rows = [batch(tmp_path, i, 1) for i in range(3)]
    segment = record_log.Segment(tmp_path / "1.log", rows[0].schema)
    ends = []
    for row in rows:
        segment.append([row])
        ends.append(segment.path.stat().st_size)
    segment.close()
    whole = segment.path.read_bytes()
    assert record_log.replay(segment.path).table == pa.Table.from_batches(rows)
    damages = {
        "cut": whole[: ends[2] - 7],
        "head cut": whole[: ends[1] + 5],
        "bit flipped": whole[: ends[2] - 20] + bytes([whole[ends[2] - 20] ^ 1]) + whole[ends[2] - 19 :],
        "never written": whole[: ends[1]] + bytes(4096),
    }
    for damage, content in damages.items():
        segment.path.write_bytes(content)
        found = record_log.replay(segment.path)
        assert found.table == pa.Table.from_batches(rows[:2]), damage
        assert found.torn == len(content) - ends[1], damage
    segment.path.write_bytes(whole[:100])
    assert record_log.replay(segment.path) == record_log.Replay(None, 100)


def test_a_torn_tail_is_cut_counted_and_kept_and_the_rest_becomes_parquet(tmp_path):
    log = opened(tmp_path)
    for i in range(3):
        log.append(batch(tmp_path, i, 1)).result(5)
    folder = kill(log, tmp_path)
    segment = next((folder / "decisions" / "segments").glob("*.log"))
    segment.write_bytes(segment.read_bytes() + b"\x10\x00\x00\x00half a record")
    recovered = recover(folder)["decisions"]
    assert (recovered.rows, recovered.torn) == (3, 17)
    assert segment.with_suffix(".torn").read_bytes() == b"\x10\x00\x00\x00half a record"
    assert ids(folder) == expected(0, 3)
    again = opened(folder)
    assert again.recovery == parquet_log.Recovery()
    again.append(batch(tmp_path, 3, 1)).result(5)
    again.close()
    assert ids(folder) == expected(0, 4)


STEPS = ["parquet written", "manifest written", "segment deleted"]


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_between_the_steps_of_a_roll_loses_and_doubles_nothing(tmp_path, monkeypatch, step):
    log = opened(tmp_path)
    log.append(batch(tmp_path, 0, 4)).result(5)
    log.close()
    log = opened(tmp_path)
    log.append(batch(tmp_path, 4, 3)).result(5)
    folder = kill(log, tmp_path)

    class Killed(Exception):
        pass

    def stop(*_, **__):
        raise Killed

    if step == "parquet written":
        monkeypatch.setattr(manifest.Manifest, "write", stop)
    elif step == "manifest written":
        monkeypatch.setattr(type(folder), "unlink", lambda path, **_: stop() if path.suffix == ".log" else None)
    else:
        monkeypatch.setattr(parquet_log._Roller, "recover", lambda self: (self.roll(99), stop()))
    with pytest.raises(Killed):
        recover(folder)
    monkeypatch.undo()
    recover(folder)
    assert sorted(ids(folder)) == sorted(expected(0, 7))
    assert manifest.read(folder / "decisions").rows == 7


@pytest.mark.parametrize(("fsync", "fewest", "most"), [("batch", 1, 2), ("always", 20, 20), ("off", 0, 0)])
def test_appends_that_wait_for_a_commit_share_one_sync_and_always_has_one_each(
    tmp_path, monkeypatch, fsync, fewest, most
):
    log = ParquetLog(tmp_path, reward_schema(), fsync=fsync)
    synced, gate, sync, commit = [], threading.Event(), os.fdatasync, log._commit
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(file), sync(file)))
    monkeypatch.setattr(log, "_commit", lambda group: (gate.wait(5), commit(group)))
    futures = [log.append(rewards([(f"t{i}", NOON, 1.0)])) for i in range(20)]
    gate.set()
    assert not wait(futures, 5).not_done
    assert all(future.exception() is None for future in futures)
    assert fewest <= len(synced) <= most
    log.close()
    assert manifest.read(tmp_path).rows == 20


def test_segments_roll_by_rows_and_by_time_and_small_files_grow_instead_of_multiplying(tmp_path):
    log = opened(tmp_path, rows=10, seconds=0.05)
    for i in range(4):
        log.append(batch(tmp_path, 3 * i, 3)).result(5)
    deadline = threading.Event()
    for _ in range(100):
        if manifest.read(tmp_path / "decisions").rows == 12:
            break
        deadline.wait(0.05)
    assert manifest.read(tmp_path / "decisions").rows == 12
    for i in range(4, 10):
        log.append(batch(tmp_path, 3 * i, 3)).result(5)
    log.close()
    written = manifest.read(tmp_path / "decisions")
    assert written.rows == 30
    assert len(written.files) <= 3
    assert all(entry.rows >= 10 for entry in written.files[:-1])
    assert sorted(ids(tmp_path)) == sorted(expected(0, 30))


def test_a_full_disk_fails_the_commit_cleanly_and_the_log_goes_on(tmp_path, monkeypatch):
    log = opened(tmp_path)
    log.append(batch(tmp_path, 0, 2)).result(5)
    real = os.write

    def full(file, data):
        if len(data) > 1000:
            return real(file, bytes(data[:1000]))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        log.append(batch(tmp_path, 2, 2)).result(5)
    monkeypatch.undo()
    log.append(batch(tmp_path, 4, 2)).result(5)
    log.close()
    assert ids(tmp_path) == expected(0, 2) + expected(4, 2)


def test_a_full_disk_while_rolling_leaves_the_manifest_and_no_half_file(tmp_path, monkeypatch):
    log = opened(tmp_path)
    log.append(batch(tmp_path, 0, 2)).result(5)
    folder = kill(log, tmp_path)
    before = (folder / "decisions" / "manifest.json").read_bytes()

    def full(_, place, **__):
        place.write_bytes(b"PAR1 half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        recover(folder)
    monkeypatch.undo()
    assert (folder / "decisions" / "manifest.json").read_bytes() == before
    assert not [path for path in (folder / "decisions").rglob("*") if "part" in path.name]
    recover(folder)
    assert ids(folder) == expected(0, 2)


def test_a_failed_roll_is_told_and_tried_again(tmp_path, monkeypatch):
    log = opened(tmp_path, rows=2)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    log.append(batch(tmp_path, 0, 2)).result(5)
    log._rolls.submit(lambda: None).result(5)
    for _ in range(100):
        if log.roll_failure:
            break
        threading.Event().wait(0.02)
    assert "No space left" in log.roll_failure
    monkeypatch.undo()
    log.append(batch(tmp_path, 2, 2)).result(5)
    log.close()
    assert log.roll_failure is None
    assert sorted(ids(tmp_path)) == sorted(expected(0, 4))


def test_a_damaged_parquet_file_is_ignored_and_told_with_its_rows(tmp_path):
    log = opened(tmp_path)
    log.append(batch(tmp_path, 0, 3)).result(5)
    log.append(batch(tmp_path, 3, 2, NOON + DAY)).result(5)
    log.close()
    torn = tmp_path / "decisions" / manifest.read(tmp_path / "decisions").files[0].path
    torn.write_bytes(torn.read_bytes()[:-100])
    found = scan(tmp_path / "decisions", decision_schema(32))
    assert (found.rows, found.lost) == (2, 3)
    assert str(torn) in found.ignored[0]
    assert "its 3 rows are ignored" in found.ignored[0]
    with pytest.raises(InputError, match="is damaged"):
        scan(tmp_path / "decisions", decision_schema(32), strict=True)
    again = opened(tmp_path)
    assert list(again.recovery.damaged) == list(found.ignored)
    assert sum(len(table) for table in again.tables(["decision_id"])) == 2
    again.close()


def test_a_file_outside_the_manifest_is_no_part_of_the_log(tmp_path):
    log = opened(tmp_path)
    log.append(batch(tmp_path, 0, 3)).result(5)
    log.close()
    stray = tmp_path / "decisions" / "policy_generation=3" / "date=2026-03-01" / "part-00000099.parquet"
    parquet.write_table(pa.Table.from_batches([batch(tmp_path, 50, 5)]), stray)
    assert ids(tmp_path) == expected(0, 3)


def test_a_lost_manifest_is_refused_rather_than_begun_anew(tmp_path):
    log = opened(tmp_path)
    log.append(batch(tmp_path, 0, 3)).result(5)
    log.close()
    (tmp_path / "decisions" / "manifest.json").unlink()
    with pytest.raises(InputError, match="restore it"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ('{"format": 2, "rolled": 0, "files": []}', "format = 2"), ('{"rolled": 0}', "with the keys")],
)
def test_a_damaged_manifest_is_refused(tmp_path, content, message):
    opened(tmp_path).close()
    (tmp_path / "decisions" / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


def test_two_processes_cannot_have_one_log(tmp_path):
    log = opened(tmp_path)
    with pytest.raises(InputError, match="another process is at work"):
        opened(tmp_path)
    assert recover(tmp_path) == {"decisions": None}
    log.close()
    opened(tmp_path).close()


def test_an_unknown_fsync_is_refused(tmp_path):
    with pytest.raises(InputError, match="fsync = 'sometimes': must be batch, always, off"):
        opened(tmp_path, fsync="sometimes")


def drifted(table, name):
    if name == "missing column":
        return table.drop_columns(["propensity"]), "propensity: the column is missing"
    if name == "no time zone":
        bare = table["event_time"].cast(pa.timestamp("us"))
        return table.set_column(1, "event_time", bare), "event_time: the timestamps have no time zone"
    index = table.schema.get_field_index("action")
    return table.set_column(index, "action", table["action"].cast(pa.string())), "action: is string, must be int16"


@pytest.mark.parametrize("name", ["missing column", "no time zone", "wrong type"])
def test_files_of_another_schema_are_told_or_refused(tmp_path, name):
    good = pa.Table.from_batches([batch(tmp_path, 0, 4)])
    other, message = drifted(good, name)
    parquet.write_table(good, tmp_path / "a.parquet")
    parquet.write_table(other, tmp_path / "b.parquet")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    found = scan(paths, decision_schema(32))
    assert (found.rows, found.lost, len(found.frame.collect())) == (4, 4, 4)
    assert message in found.ignored[0]
    with pytest.raises(InputError, match=message):
        scan(paths, decision_schema(32), strict=True)
    with pytest.raises(InputError, match=message):
        scan(paths[1], decision_schema(32))


def test_other_widths_and_absent_optional_columns_are_read(tmp_path):
    good = pa.Table.from_batches([batch(tmp_path, 0, 4)])
    wide = good.drop_columns(["pi", "explore_coin"])
    for column, kind in (("action", pa.int64()), ("tenant", pa.large_string()), ("issuer", pa.int32())):
        wide = wide.set_column(wide.schema.get_field_index(column), column, wide[column].cast(kind))
    parquet.write_table(good, tmp_path / "a.parquet")
    parquet.write_table(wide, tmp_path / "b.parquet")
    frame = scan([tmp_path / "a.parquet", tmp_path / "b.parquet"], decision_schema(32)).frame.collect()
    assert frame[:4].equals(frame[4:])


def test_a_folder_without_parquet_is_refused(tmp_path):
    with pytest.raises(InputError, match="no Parquet file there"):
        scan(tmp_path, decision_schema(32))
