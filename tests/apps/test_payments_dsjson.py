import json

import pytest

from apps.payments.log import dsjson
from apps.payments.log.dsjson import join_dsjson, read_dsjson, write_dsjson
from apps.payments.log.join import join_rewards
from apps.payments.log.schema import transaction_key
from core.errors import InputError
from tests.apps.payments_log_cases import HOUR, NOON, decisions, rewards, saved_policy

pa = pytest.importorskip("pyarrow")
pytest.importorskip("polars")
parquet = pytest.importorskip("pyarrow.parquet")

# A line as Azure Personalizer wrote them, in the layout that Vowpal Wabbit documents.
FOREIGN = {
    "_label_cost": -0.75,
    "_label_probability": 0.8,
    "_label_Action": 3,
    "_labelIndex": 2,
    "Version": "1",
    "EventId": "event-1",
    "Timestamp": "2018-10-25T04:45:46.7341230Z",
    "a": [3, 1, 2],
    "p": [0.8, 0.15, 0.05],
    "c": {"User": {"age": "young"}, "_multi": [{"Action": {"x": 1}}, {"Action": {"x": 2}}, {"Action": {"x": 3}}]},
    "VWState": {"m": "model"},
}


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def without(*names, **more):
    return {name: value for name, value in FOREIGN.items() if name not in names} | more


@pytest.fixture(params=[True, False], ids=["pi", "no pi"])
def joined(request, tmp_path):
    """Some rows of a join, with the probabilities of all actions or without."""
    policy = saved_policy(tmp_path / "policy", rule="epsilon_slice", epsilon=0.3)
    names = [f"t{i}" for i in range(40)]
    made = decisions(policy, names, [NOON] * 40, keep_probabilities=request.param)
    parquet.write_table(pa.Table.from_batches([made]), tmp_path / "d.parquet")
    answers = [(name, NOON + HOUR, i % 3 / 2) for i, name in enumerate(names[:30])]
    parquet.write_table(pa.Table.from_batches([rewards(answers)]), tmp_path / "r.parquet")
    join_rewards(tmp_path / "d.parquet", tmp_path / "r.parquet", tmp_path / "joined", actions=32)
    return parquet.read_table(tmp_path / "joined" / "joined.parquet")


def test_what_is_written_comes_back_to_the_last_bit(tmp_path, joined):
    known = joined.filter(pa.compute.is_valid(joined["reward"]))
    assert write_dsjson(tmp_path / "log.dsjson", [joined.slice(0, 17), joined.slice(17)], 32) == 30
    report = join_dsjson(tmp_path / "log.dsjson", tmp_path / "back", actions=32)
    back = parquet.read_table(tmp_path / "back" / "joined.parquet")
    assert (report.matched, report.lost) == (30, 0)
    assert back.schema == known.schema
    assert back.to_pylist() == known.to_pylist()


def test_vowpal_wabbit_reads_the_costs_probabilities_and_available_actions(tmp_path, joined):
    vw = pytest.importorskip("vowpalwabbit")
    write_dsjson(tmp_path / "log.dsjson", [joined], 32)
    workspace = vw.Workspace("--dsjson --cb_explore_adf --quiet --chain_hash")
    known = joined.filter(pa.compute.is_valid(joined["reward"])).to_pylist()
    for row, line in zip(known, (tmp_path / "log.dsjson").read_text().splitlines(), strict=True):
        examples = workspace.parse(line)
        labels = [example.get_label(vw.CBLabel).costs for example in examples]
        offered = [i for i in range(32) if row["mask"] >> i & 1]
        # The first example is the shared context, one follows for each available action.
        assert len(labels) == 1 + len(offered)
        (chosen,) = [place for place, costs in enumerate(labels[1:]) if costs]
        assert offered[chosen] == row["action"]
        (label,) = labels[1 + chosen]
        assert (label.cost, label.probability) == pytest.approx((-row["reward"], row["propensity"]))
        workspace.learn(examples)
        workspace.finish_example(examples)


def test_lines_of_others_are_read_with_their_positions_as_actions(tmp_path):
    (chunk,) = read_dsjson(lines(tmp_path / "f", FOREIGN, "", without("p", "a", "_labelIndex", EventId="2")), 8)
    first, second = chunk.decisions.to_pylist()
    assert first["decision_id"] == transaction_key("", "event-1")
    assert str(first["event_time"]) == "2018-10-25 04:45:46.734123+00:00"
    assert (first["action"], first["propensity"], first["mask"]) == (2, 0.8, 0b111)
    assert first["pi"] == pytest.approx([0.15, 0.05, 0.8, 0, 0, 0, 0, 0])
    assert second["pi"] is None
    assert chunk.rewards["reward"].to_pylist() == [0.75, 0.75]
    report = join_dsjson(tmp_path / "f", tmp_path / "out", actions=8)
    assert (report.matched, report.refused_decisions) == (2, {})


BAD = {
    "not JSON": ("{", "not JSON"),
    "a list": ("[1]", "not a JSON object"),
    "no probability": (without("_label_probability"), "_label_probability = None: must be a finite number"),
    "probability 0": (without(_label_probability=0), "_label_probability = 0: must be in"),
    "probability over 1": (without(_label_probability=1.2), "_label_probability = 1.2: must be in"),
    "probability NaN": (without(_label_probability=float("nan")), "_label_probability = nan"),
    "no cost": (without("_label_cost"), "_label_cost = None"),
    "cost of 2": (without(_label_cost=-2), "_label_cost = -2"),
    "unknown action": (without(_label_Action=4), "_label_Action = 4: must be in 1 to 3"),
    "half an action": (without(_label_Action=1.5), "_label_Action = 1.5: must be in 1 to 3"),
    "action 0": (without(_label_Action=0), "_label_Action = 0: must be in 1 to 3"),
    "index of another action": (without(_labelIndex=0), "_labelIndex = 0: must be _label_Action - 1 = 2"),
    "sum": (without(p=[0.8, 0.1, 0.05]), "p: sums to 0.95"),
    "negative p": (without(p=[1.1, -0.05, -0.05]), "p: must hold a probability for each entry of a"),
    "no time zone": (without(Timestamp="2018-10-25T04:45:46"), "must have a time zone"),
    "no moment": (without(Timestamp="yesterday"), "Timestamp = yesterday"),
    "no id": (without("EventId"), "EventId = None: must be a text"),
    "empty mask": (without(c={"_multi": []}), "_multi: no action is available"),
    "action beyond K": (without(c={"_multi": [{"action": {"id": "99"}}] * 3}), "action 99 is not one of 0 to 7"),
    "action twice": (without(c={"_multi": [{"action": {"id": "5"}}] * 3}), "an action is there twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_lines_that_are_no_decision_are_set_apart_with_their_number_or_refused(tmp_path, case):
    row, message = BAD[case]
    path = lines(tmp_path / "f", FOREIGN, row)
    report = join_dsjson(path, tmp_path / "out", actions=8)
    assert (report.matched, report.lost) == (1, 1)
    (refused,) = map(json.loads, (tmp_path / "out" / dsjson.LINES).read_text().splitlines())
    assert refused["line"] == 2
    assert message in refused["reason"]
    assert refused["text"] == path.read_text().splitlines()[1]
    with pytest.raises(InputError, match="line 2: "):
        join_dsjson(path, tmp_path / "out", actions=8, strict=True)


def test_every_line_is_a_decision_or_refused_in_whatever_parts_a_file_is_read(tmp_path, monkeypatch):
    rows = [without(EventId=str(i)) if i % 3 else "{" for i in range(100)]
    path = lines(tmp_path / "f", *rows)
    whole = list(read_dsjson(path, 8))
    monkeypatch.setattr(dsjson, "ROWS", 7)
    parts = list(read_dsjson(path, 8))
    assert len(parts) == 15
    assert pa.concat_tables([part.decisions for part in parts]) == whole[0].decisions
    assert [line for part in parts for line in part.refused] == list(whole[0].refused)
    assert len(whole[0].decisions) + len(whole[0].refused) == 100


def test_no_file_is_told(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(read_dsjson(tmp_path / "none", 8))
