import hashlib
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
import torch

from apps.payments.log import join as joining
from apps.payments.log.join import HORIZON, join_log, join_rewards
from apps.payments.log.parquet_log import PARTITIONS, ParquetLog
from apps.payments.log.schema import decision_schema, reward_schema, transaction_key
from apps.payments.log.tables import fixed_binary, logged, logged_chunks
from core.errors import InputError
from tests.apps.payments_log_cases import DAY, HOUR, NOON, changed, decisions, payments, rewards, saved_policy

pa = pytest.importorskip("pyarrow")
pl = pytest.importorskip("polars")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def policy(tmp_path):
    return saved_policy(tmp_path / "policy")


def write(path, *batches):
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.Table.from_batches(batches), path)
    return path


def moment(microseconds):
    return datetime.fromtimestamp(microseconds / 1e6, UTC)


def joined(out):
    """Rows of the join by decision id."""
    return {row["decision_id"]: row for row in parquet.read_table(out / joining.JOINED).to_pylist()}


def quarantined(out, name=joining.REWARDS):
    return parquet.read_table(out / name).to_pylist()


def key(name):
    return transaction_key("shop", name)


def test_the_first_reward_within_the_horizon_counts_and_every_other_is_set_apart_with_its_reason(tmp_path, policy):
    names = ["first", "tie", "late", "early", "none", "young", "edge", "at once"]
    times = [NOON] * len(names)
    times[names.index("young")] = NOON + 40 * DAY
    made = write(tmp_path / "d.parquet", decisions(policy, names, times))
    answers = [
        ("first", NOON + 3 * HOUR, 0.0),
        ("first", NOON + 2 * HOUR, 1.0),
        ("first", NOON + 2 * HOUR, 1.0),
        ("tie", NOON + HOUR, 0.0, "psp"),
        ("tie", NOON + HOUR, 1.0, "bank"),
        ("late", NOON + 30 * DAY + 1, 1.0),
        ("early", NOON - 1, 1.0),
        ("edge", NOON + 30 * DAY, 1.0),
        ("at once", NOON, 1.0),
        ("nobody's", NOON + HOUR, 1.0),
        ("none", NOON + HOUR, 1.5),
    ]
    report = join_rewards(made, write(tmp_path / "r.parquet", rewards(answers)), tmp_path / "out", actions=32)
    found = joined(tmp_path / "out")
    assert {name: (found[key(name)]["status"], found[key(name)]["reward"]) for name in names} == {
        "first": ("matched", 1.0),
        "tie": ("matched", 1.0),
        "late": ("censored", None),
        "early": ("censored", None),
        "none": ("censored", None),
        "young": ("pending", None),
        "edge": ("matched", 1.0),
        "at once": ("matched", 1.0),
    }
    assert found[key("first")]["reward_time"] == moment(NOON + 2 * HOUR)
    assert found[key("tie")]["source"] == "bank"
    assert (report.matched, report.censored, report.pending) == (4, 3, 1)
    assert report.refused_rewards == {
        "duplicate": 3,
        "the reward is before its decision": 1,
        "the reward is later than the horizon": 1,
        "the reward is not in [0, 1]": 1,
        "there is no such decision": 1,
    }
    assert len(quarantined(tmp_path / "out")) == 7
    assert report.rewards == report.matched + 7
    assert json.loads((tmp_path / "out" / "join.json").read_text())["matched"] == 4


def test_as_of_tells_pending_from_censored(tmp_path, policy):
    made = write(tmp_path / "d.parquet", decisions(policy, ["a"], [NOON]))
    none = write(tmp_path / "r.parquet", rewards([("x", NOON, 1.0)]))
    for days, status in ((30, "pending"), (31, "censored")):
        join_rewards(made, none, tmp_path / "out", actions=32, as_of=moment(NOON + days * DAY))
        assert joined(tmp_path / "out")[key("a")]["status"] == status
    with pytest.raises(InputError, match="must have a time zone"):
        join_rewards(made, none, tmp_path / "out", actions=32, as_of=datetime(2026, 4, 1))
    with pytest.raises(InputError, match="must be greater than 0"):
        join_rewards(made, none, tmp_path / "out", actions=32, horizon=timedelta(0))


def random_log(policy, seed, n=400):
    """Decisions, some twice, and rewards, several or none each, some late, early, impossible or of nobody."""
    rng = np.random.default_rng(seed)
    made = decisions(policy, [f"t{i}" for i in range(n)], NOON + rng.integers(0, DAY, n), keep_probabilities=True)
    again = made.take(pa.array(rng.integers(0, n, 20)))
    other = changed(made.take(pa.array(range(5))), "tenant", 2, "other")
    broken = changed(made.slice(7, 1), "propensity", 0, 1.5)
    chosen = rng.integers(0, n + 20, 3 * n)
    delay = rng.integers(-HOUR, 32 * DAY, 3 * n)
    values, sources = rng.choice([0.0, 1.0, 2.0], 3 * n, p=[0.4, 0.5, 0.1]), rng.choice(["bank", "psp"], 3 * n)
    answers = [
        (f"t{c}", NOON + int(d), float(v), str(s)) for c, d, v, s in zip(chosen, delay, values, sources, strict=True)
    ]
    return [made, again, other, broken], rewards(answers + answers[:30])


def files_of(folder, batches, seed):
    """The rows of all batches in a random order, in a random number of files."""
    rng = np.random.default_rng(seed)
    table = pa.Table.from_batches(batches)
    table = table.take(pa.array(rng.permutation(len(table))))
    edges = [0, *sorted(rng.integers(0, len(table), rng.integers(1, 5)).tolist()), len(table)]
    folder.mkdir()
    for number, (low, high) in enumerate(pairwise(edges)):
        parquet.write_table(table.slice(low, high - low), folder / f"{rng.integers(1000)}_{number}.parquet")
    return folder


def test_the_same_rows_in_any_files_and_order_give_the_same_bytes_also_where_they_are_joined_in_parts(tmp_path, policy):
    made, answers = random_log(policy, 1)
    sums = set()
    for seed, bucket in ((1, 1 << 22), (2, 1 << 22), (3, 1 << 22)):
        places = files_of(tmp_path / f"d{seed}", made, seed), files_of(tmp_path / f"r{seed}", [answers], seed)
        out = tmp_path / f"out{seed}"
        join_rewards(*places, out, actions=32, bucket=bucket)
        sums.add(tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())))
        assert len(list(out.iterdir())) == 4
    assert len(sums) == 1
    parts = join_rewards(tmp_path / "d1", tmp_path / "r1", tmp_path / "parts", actions=32, bucket=150)
    assert parts == join_rewards(tmp_path / "d1", tmp_path / "r1", tmp_path / "whole", actions=32)
    for name in (joining.JOINED, joining.DECISIONS, joining.REWARDS):
        assert parquet.read_table(tmp_path / "parts" / name) == parquet.read_table(tmp_path / "whole" / name)
    ids = parquet.read_table(tmp_path / "parts" / joining.JOINED)["decision_id"].to_pylist()
    assert ids == sorted(set(ids))


def test_the_join_agrees_with_a_plain_loop_over_the_rows(tmp_path, policy):
    made, answers = random_log(policy, 2)
    out = tmp_path / "out"
    report = join_rewards(files_of(tmp_path / "d", made, 1), files_of(tmp_path / "r", [answers], 1), out, actions=32)
    first = {}
    decided = {row["decision_id"]: row["event_time"] for row in made[0].to_pylist()}
    for row in sorted(answers.to_pylist(), key=lambda r: (r["event_time"], r["source"], r["attempt"], r["reward"])):
        time = decided.get(row["decision_id"])
        if row["reward"] <= 1 and time is not None and timedelta(0) <= row["event_time"] - time <= HORIZON:
            first.setdefault(row["decision_id"], row["reward"])
    assert {name: row["reward"] for name, row in joined(out).items() if row["status"] == "matched"} == first
    assert report.refused_decisions == {
        "duplicate": 20 + 4,
        joining.CONFLICT: 1,
        "propensity is not in (0, 1]": 1,
    }
    assert report.decisions == len(joined(out)) + len(quarantined(out, joining.DECISIONS))
    assert report.rewards == report.matched + len(quarantined(out))


IMPOSSIBLE = [
    ("propensity", None, "propensity is missing"),
    ("propensity", 0.0, "propensity is not in"),
    ("propensity", 1.01, "propensity is not in"),
    ("propensity", float("nan"), "propensity is not in"),
    ("mask", 0, "no action is available"),
    ("mask", 1 << 40, "the mask has an action beyond the 32"),
    ("action", 32, "the action is not one of 0 to 31"),
    ("action", -1, "the action is not one of 0 to 31"),
    ("gamma", -1.0, "gamma is negative"),
    ("eps", 1.5, "eps is not in"),
    ("pi", [0.5, 0.4], "pi does not sum to 1"),
    ("pi", [1.5, -0.5], "pi has a probability that is negative"),
    ("decision_id", None, "decision_id is missing"),
    ("event_time", None, "event_time is missing"),
    ("hour", float("nan"), "hour is not finite"),
    ("hour", None, "hour is missing"),
    ("issuer", None, "issuer is missing"),
]


@pytest.mark.parametrize(("column", "value", "reason"), IMPOSSIBLE)
def test_impossible_decisions_are_set_apart_or_refused(tmp_path, policy, column, value, reason):
    batch = changed(decisions(policy, ["a", "b", "c"], [NOON] * 3), column, 1, value)
    made = write(tmp_path / "d.parquet", batch)
    answered = write(tmp_path / "r.parquet", rewards([(name, NOON + HOUR, 1.0) for name in "abc"]))
    report = join_rewards(made, answered, tmp_path / "out", actions=32)
    assert report.matched == 2
    (refused,) = report.refused_decisions
    assert refused.startswith(reason)
    assert quarantined(tmp_path / "out", joining.DECISIONS)[0][column] == pytest.approx(value, nan_ok=True)
    with pytest.raises(InputError, match=f"decisions: row 1: {reason}"):
        join_rewards(made, answered, tmp_path / "out", actions=32, strict=True)
    assert not (tmp_path / "out" / ".joined.parquet.tmp").exists()


def test_an_action_that_was_not_available_is_set_apart_for_every_kind_of_mask(tmp_path, policy):
    batch = decisions(policy, ["a", "b"], [NOON] * 2)
    answered = write(tmp_path / "r.parquet", rewards([("a", NOON + HOUR, 1.0)]))
    action = batch["action"][1].as_py()
    lists = [[i for i in range(32) if mask >> i & 1] for mask in batch["mask"].to_pylist()]
    kinds = {
        "bits": {"mask": pa.array([batch["mask"][0].as_py(), batch["mask"][1].as_py() & ~(1 << action)], pa.uint64())},
        "list": {"mask": pa.array([lists[0], [a for a in lists[1] if a != action]], pa.list_(pa.int16()))},
        "flags": {
            "allowed": pa.array([31, 31 & ~action], pa.uint16()),
            "forced": pa.array([0, 0 if action else 1], pa.uint16()),
        },
    }
    for kind, columns in kinds.items():
        table = pa.Table.from_batches([batch]).drop_columns(["mask"])
        for name, column in columns.items():
            table = table.append_column(name, column)
        parquet.write_table(table, tmp_path / "d.parquet")
        schema = decision_schema(32, kind)
        report = join_rewards(tmp_path / "d.parquet", answered, tmp_path / kind, actions=32, schema=schema)
        assert report.refused_decisions == {"the action is not available": 1}, kind
        assert report.matched == 1


def test_a_decision_that_contradicts_an_earlier_one_is_refused_if_strict(tmp_path, policy):
    batch = decisions(policy, ["a", "b"], [NOON] * 2)
    made = write(tmp_path / "d.parquet", batch, changed(batch, "issuer", 0, 7))
    answered = write(tmp_path / "r.parquet", rewards([("a", NOON + HOUR, 1.0)]))
    report = join_rewards(made, answered, tmp_path / "out", actions=32)
    assert report.refused_decisions == {"duplicate": 1, joining.CONFLICT: 1}
    with pytest.raises(InputError, match=f"{key('a').hex()}: {joining.CONFLICT}"):
        join_rewards(made, answered, tmp_path / "out", actions=32, strict=True)


def test_amounts_are_rewards_only_if_asked_for(tmp_path, policy):
    made = write(tmp_path / "d.parquet", decisions(policy, ["a", "b"], [NOON] * 2))
    answered = write(tmp_path / "r.parquet", rewards([("a", NOON, 31.5), ("b", NOON, float("inf"))]))
    assert join_rewards(made, answered, tmp_path / "out", actions=32).matched == 0
    report = join_rewards(made, answered, tmp_path / "out", actions=32, net_value=True)
    assert (report.matched, report.refused_rewards) == (1, {"the reward is not finite": 1})


def test_a_full_disk_leaves_no_half_result(tmp_path, policy, monkeypatch):
    made = write(tmp_path / "d.parquet", decisions(policy, ["a"], [NOON]))
    answered = write(tmp_path / "r.parquet", rewards([("a", NOON, 1.0)]))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        join_rewards(made, answered, tmp_path / "out", actions=32)
    assert not list((tmp_path / "out").iterdir())


def test_a_torn_file_is_ignored_and_told(tmp_path, policy):
    write(tmp_path / "d" / "a.parquet", decisions(policy, ["a"], [NOON]))
    torn = write(tmp_path / "d" / "b.parquet", decisions(policy, ["b"], [NOON]))
    torn.write_bytes(torn.read_bytes()[:200])
    answered = write(tmp_path / "r.parquet", rewards([("a", NOON, 1.0)]))
    report = join_rewards(tmp_path / "d", answered, tmp_path / "out", actions=32)
    assert (report.matched, report.decisions) == (1, 1)
    assert f"{torn}: is torn" in report.ignored[0]


def test_the_log_of_a_killed_service_is_joined_with_what_it_had_not_rolled(tmp_path, policy):
    logs = {
        name: ParquetLog(tmp_path / name, schema, PARTITIONS[name])
        for name, schema in (("decisions", decision_schema(32)), ("rewards", reward_schema()))
    }
    (tmp_path / "log.json").write_text('{"actions": 32}')
    logs["decisions"].append(decisions(policy, ["a", "b"], [NOON] * 2)).result(5)
    logs["rewards"].append(rewards([("a", NOON + HOUR, 1.0)])).result(5)
    # While the service is at work its last minute is not in Parquet.
    assert join_log(tmp_path, tmp_path / "out").decisions == 0
    for log in logs.values():
        log.close()
    report = join_log(tmp_path, tmp_path / "out")
    assert (report.decisions, report.matched, report.pending) == (2, 1, 1)


def test_joined_rows_come_back_as_the_tensors_that_were_logged(tmp_path, policy):
    names = [f"t{i}" for i in range(300)]
    batch = decisions(policy, names, [NOON] * 300)
    answered = rewards([(name, NOON + HOUR, float(i % 2)) for i, name in enumerate(names[:250])])
    places = write(tmp_path / "d.parquet", batch), write(tmp_path / "r.parquet", answered)
    join_rewards(*places, tmp_path / "out", actions=32)
    chunks = list(logged_chunks(tmp_path / "out" / joining.JOINED, 32, rows=64))
    assert all(len(chunk) <= 64 for chunk in chunks)
    rows = type(chunks[0]).cat(chunks)
    assert len(rows) == 250
    context, mask = payments(300)
    order = torch.tensor([names.index(name) for name in sorted(names[:250], key=key)])
    assert torch.equal(rows.mask, mask[order])
    assert all(torch.equal(getattr(rows.context, n), c[order]) for n, c in context.columns().items())
    assert torch.equal(rows.reward, (order % 2).double())
    assert torch.equal(rows.ids, torch.tensor([list(key(names[i])) for i in order], dtype=torch.uint8))
    chosen = policy.probabilities(rows.context, rows.mask).gather(1, rows.action[:, None]).squeeze(1)
    assert torch.equal(chosen, rows.propensity)
    assert rows.day.unique().tolist() == [NOON // DAY]
    part = rows.take(rows.reward > 0)
    assert len(part) == int(rows.reward.sum())


def test_a_log_without_its_context_is_no_evidence_for_a_policy(tmp_path, policy):
    table = pa.Table.from_batches([decisions(policy, ["a"], [NOON])])
    table = table.set_column(table.schema.get_field_index("hour"), "hour", pa.nulls(1, pa.float64()))
    with pytest.raises(InputError, match="hour: 1 values are missing"):
        logged(table.append_column("reward", pa.array([1.0])), 32)


def test_fixed_binary_takes_rows_of_bytes():
    assert fixed_binary(np.arange(32, dtype=np.uint8).reshape(2, 16)).to_pylist() == [
        bytes(range(16)),
        bytes(range(16, 32)),
    ]
