"""The verbs of ``szilard payments`` as a user types them, and one clear line for every mistake."""

import json
import sys

import numpy as np
import pytest

from apps.cli import main
from apps.payments import figures
from apps.payments.evaluation.evidence import PaymentsLog
from apps.payments.log import join_log
from apps.payments.policy import Policy
from apps.payments.simulated_log import simulate_log
from tests.apps.payments_cases import arm, scenario

pl = pytest.importorskip("polars")
pytest.importorskip("pyarrow")

STUDY = """
study: tiny
worlds: {first: 0, count: 2}
claims: []
scenarios:
  - name: base
    sizes: {issuers: 12, merchants: 6, countries: 4}
    generations: 4
    payments: 300
    evaluation: 150
    arms:
      - {name: uniform, exploration: {rule: uniform}}
      - {name: igw, exploration: {rule: igw, gamma: 300}, window: 2}
"""


@pytest.fixture
def szilard(monkeypatch, capsys):
    """Run the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["szilard", "payments", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A log, the log joined, and a policy."""
    folder = tmp_path_factory.mktemp("made")
    found = simulate_log(scenario(generations=2), arm(gamma=100.0), 0, folder / "log")
    join_log(folder / "log", folder / "joined")
    found.next_policy.rename(folder / "policy")
    (folder / "joined" / "torn").mkdir()
    (folder / "joined" / "torn" / "joined.parquet").write_bytes(b"PAR1")
    return folder


# ---- from a simulated log to a judged policy, and to Vowpal Wabbit and back


def test_simulate_join_train_evaluate_and_back(szilard, tmp_path):
    log, joined, policy = tmp_path / "log", tmp_path / "joined", tmp_path / "next"
    delay = ["--set", "delay.median_hours=6", "--set", "delay.never=0.1", "--set", "sizes={issuers: 12, merchants: 6}"]
    code, text, err = szilard(
        *("simulate", "--out", log, "--generations", 2, "--payments", 500, "--rule", "igw", "--gamma", 50, *delay)
    )
    assert code == 0, err
    truth = json.loads((log / "truth.json").read_text())["online_value"]
    assert len(truth) == 2
    for generation, value in enumerate(truth):
        assert f"generation {generation}: true approval rate {100 * value:.2f} %" in text
    answers = int(text.split(" decisions, ")[1].split()[0])
    assert 850 < answers < 950  # a tenth never came

    code, text, err = szilard("join", log, "--out", joined)
    assert code == 0, err
    assert f"1000 decisions: {answers} with a reward, {1000 - answers} pending, 0 censored, 0 set apart" in text
    assert f"{answers} rewards: 0 set apart" in text
    assert szilard("join", log, "--out", tmp_path / "later", "--as-of", "2026-01-01T00:00Z")[1].count("0 pending") == 1
    rows = pl.read_parquet(joined / "joined.parquet")
    assert rows["generation"].value_counts().sort("generation")["count"].to_list() == [500, 500]
    assert rows.filter(pl.col("generation") == 1)["gamma"].unique().to_list() == [50.0]
    assert rows.filter(pl.col("generation") == 0)["rule"].unique().to_list() == ["uniform"]
    approved = rows["reward"].mean()
    assert abs(approved - np.mean(truth)) < 0.05

    code, text, err = szilard("train", joined, "--out", policy, "--rule", "igw", "--gamma", 200, "--window", 1)
    assert code == 0, err
    learned = int(text.split("learned from ")[1].split()[0])
    assert text.startswith(f"policy next, generation 2, learned from {learned} rows")
    whole = rows.filter(pl.col("generation") == 1)["reward"].count()
    assert 0.55 * whole < learned < 0.78 * whole  # a third is held out
    everything = ["--out", tmp_path / "everything", "--rule", "igw", "--window", 1, "--all-rows"]
    assert f"learned from {whole} rows" in szilard("train", joined, *everything)[1]
    code, _, err = szilard("train", joined, "--out", policy)
    assert (code, "exists and is not empty" in err) == (2, True)
    assert Policy.load(policy).exploration.gamma == 200

    out = tmp_path / "evaluation"
    fast = ["--set", "replicates=20", "--segment", "funding"]
    evaluate = ["evaluate", joined, "--policy", policy, "--policy", "same=uniform", "--out", out, *fast]
    code, text, err = szilard(*evaluate)
    assert code == 0, err
    for told in ("promote_next", "promote_same", "switch_dr", str(out / "report.html")):
        assert told in text
    summary = json.loads((out / "summary.json").read_text())
    assert {row["scenario"] for row in summary["table"]} >= {"log", "next", "same", "next by segment"}
    logged = next(row for row in summary["table"] if row["scenario"] == "log")
    assert 0.22 * answers < logged["n"] < 0.45 * answers  # the third that the policy has not learned from
    assert abs(logged["mean"] - approved) < 0.1
    code, text, err = szilard(*evaluate, "--require-claims")
    assert code == 1  # uniform decisions are no gain
    assert "were finished before" in err + text
    code, _, err = szilard(*evaluate, "--set", "clip=3")
    assert code == 2
    assert "choose another --out, or --fresh" in err

    there, back = tmp_path / "decisions.json", tmp_path / "back"
    code, text, err = szilard("export-dsjson", joined, "--out", there)
    assert code == 0, err
    assert text.startswith(f"{answers} lines")
    assert len(there.read_text().splitlines()) == answers
    code, text, err = szilard("import-dsjson", there, "--out", back)
    assert code == 0, err
    assert f"{answers} decisions: {answers} with a reward, 0 pending" in text
    known = rows.filter(pl.col("reward").is_not_null())
    returned = pl.read_parquet(back / "joined.parquet")
    compared = ["decision_id", "event_time", "action", "propensity", "mask", "reward", "generation", "issuer", "hour"]
    assert returned.select(compared).equals(known.select(compared))
    code, text, err = szilard("export-dsjson", back, "--out", tmp_path / "again.json")
    assert code == 0, err
    assert (tmp_path / "again.json").read_bytes() == there.read_bytes()


def test_a_slice_s_coin_is_in_the_log(szilard, tmp_path):
    code, _, err = szilard(
        *("simulate", "--out", tmp_path / "log", "--generations", 2, "--payments", 400),
        *("--rule", "epsilon_slice", "--epsilon", 0.25, "--world", 3),
    )
    assert code == 0, err
    assert szilard("join", tmp_path / "log", "--out", tmp_path / "joined")[0] == 0
    rows = pl.read_parquet(tmp_path / "joined" / "joined.parquet").filter(pl.col("generation") == 1)
    assert rows["explore_coin"].mean() == pytest.approx(0.25, abs=0.08)
    assert rows["eps"].unique().to_list() == [0.25]
    # Most are certain of their best action; the mixture's propensity is what is logged.
    available = rows["mask"].bitwise_count_ones()
    outside = rows.filter(~pl.col("explore_coin"))["propensity"]
    np.testing.assert_allclose(outside, 0.75 + 0.25 / available.filter(~rows["explore_coin"]), rtol=1e-12)


def test_the_same_seed_writes_the_same_log_and_another_world_another(szilard, tmp_path):
    for name, world in (("one", 0), ("two", 0), ("three", 1)):
        given = ("--generations", 2, "--payments", 200, "--world", world)
        assert szilard("simulate", "--out", tmp_path / name, *given)[0] == 0
        assert szilard("join", tmp_path / name, "--out", tmp_path / f"{name}_joined")[0] == 0
    one, two, three = (
        (tmp_path / f"{name}_joined" / "joined.parquet").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two != three


def test_a_log_of_few_actions_is_evaluated(szilard, made, tmp_path):
    assert szilard("export-dsjson", made / "joined", "--out", tmp_path / "d.json")[0] == 0
    code, text, err = szilard("import-dsjson", tmp_path / "d.json", "--out", tmp_path / "joined", "--actions", 8)
    assert code == 0, err
    assert "lines are no decisions, see quarantine_lines.jsonl" in text
    assert PaymentsLog.open(tmp_path / "joined").actions == 32
    how = ["--set", "replicates=0", "--set", "model=null"]
    how += ["--policy", "uniform"]
    code, text, err = szilard("evaluate", tmp_path / "joined", "--out", tmp_path / "out", *how)
    assert code == 0, err
    assert "uniform" in text


def test_run_report_and_estimate(szilard, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "of_scenario", lambda *_: [])  # drawn in the tests of the study
    (tmp_path / "tiny.yaml").write_text(STUDY)
    code, text, err = szilard("estimate", tmp_path / "tiny.yaml")
    assert code == 0, err
    assert "tiny on cpu: about " in text
    assert [line.split()[1:3] for line in text.splitlines() if line.startswith(("base", "  base"))] == [
        ["uniform", "2"],
        ["igw", "2"],
    ]
    out = tmp_path / "out"
    code, text, err = szilard("run", tmp_path / "tiny.yaml", "--out", out, "--workers", 0, "--set", "worlds.count=2")
    assert code == 0, err
    assert "online value" in text
    assert str(out / "report.html") in text
    before = json.loads((out / "summary.json").read_text())["table"]
    code, text, err = szilard("report", out)
    assert code == 0, err
    assert json.loads((out / "summary.json").read_text())["table"] == before


# ---- mistakes

SIMULATE = ["simulate", "--out", "OUT", "--payments", "200"]
TRAIN = ["train", "MADE/joined", "--out", "OUT"]
EVALUATE = ["evaluate", "MADE/joined", "--policy", "uniform", "--out", "OUT"]
REFUSALS = [
    ([*SIMULATE, "--rule", "magic"], "'magic' is not one of 'uniform'"),
    ([*SIMULATE, "--gamma", "-1"], "simulate: gamma = -1.0: must be at least 0"),
    ([*SIMULATE, "--gamma", "nan"], "must be a finite number"),
    ([*SIMULATE, "--gamma", "much"], "Input should be a valid number"),
    ([*SIMULATE, "--rule", "epsilon", "--epsilon", "1.5"], "epsilon = 1.5: must be less than or equal to 1"),
    ([*SIMULATE, "--floor", "-0.1"], "floor = -0.1: must be greater than or equal to 0"),
    ([*SIMULATE, "--rule", "epsilon_slice", "--window", "3"], "window must be 1"),
    ([*SIMULATE, "--rule", "epsilon_slice", "--floor", "0.1"], "floor and minimum must be 0"),
    ([*SIMULATE, "--payments", "5"], "--payments"),
    ([*SIMULATE, "--set", "delay.median_hours=-1"], "delay.median_hours = -1.0: must be at least"),
    ([*SIMULATE, "--set", "drift.kind=magic"], "must be 'ornstein_uhlenbeck', 'abrupt' or 'seasonal'"),
    ([*SIMULATE, "--set", "colour=red"], "colour: unknown key; known here: name, sizes"),
    ([*SIMULATE, "--set", "sizes.flags=11"], "flags = 11: must be between 5 and 10"),
    (["simulate", "--out", "MADE/log"], "exists and is not empty"),
    (["simulate", "--out", "MADE/joined/join.json"], "exists and is not empty"),
    (["join", "OUT/none", "--out", "OUT"], "OUT/none/log.json: no such file"),
    (["join", "MADE/joined", "--out", "OUT"], "log.json: no such file"),
    (
        ["join", "MADE/log", "--out", "OUT", "--as-of", "yesterday"],
        "--as-of yesterday: must be an ISO time with its zone",
    ),
    (["join", "MADE/log", "--out", "OUT", "--as-of", "2025-03-01"], "must have a time zone"),
    (["join", "MADE/log", "--out", "OUT", "--horizon-days", "0"], "--horizon-days 0.0: must be greater than 0"),
    (["join", "MADE/log", "--out", "OUT", "--horizon-days", "1e12"], "and at most 36525"),
    (["join", "MADE/log", "--out", "OUT", "--horizon-days", "nan"], "--horizon-days"),
    (["train", "OUT/none", "--out", "OUT"], "OUT/none: no such log; szilard payments join makes one"),
    (["train", "MADE/log", "--out", "OUT"], "no such log; szilard payments join makes one"),
    (["train", "MADE/joined/torn", "--out", "OUT"], "not a joined log"),
    (["train", "MADE/joined/torn", "--out", "OUT", "--actions", "32"], "not a joined log"),
    ([*TRAIN, "--rule", "magic"], "'magic' is not one of"),
    ([*TRAIN, "--rule", "thompson_bootstrap"], "--rule thompson_bootstrap: is for simulations"),
    ([*TRAIN, "--gamma", "-2"], "train: gamma = -2.0: must be at least 0"),
    ([*TRAIN, "--rule", "epsilon", "--epsilon", "-1"], "train: epsilon = -1.0: must be greater than or equal to 0"),
    ([*TRAIN, "--oracle", "magic"], "'magic' is not one of 'factored'"),
    ([*TRAIN, "--oracle-set", "iterations=0"], "iterations = 0: must be greater than or equal to 1"),
    ([*TRAIN, "--oracle-set", "colour=red"], "colour: unknown key; known here: kind, iterations"),
    ([*TRAIN, "--imbalance", "method=magic"], 'method = "magic": must be'),
    ([*TRAIN, "--oracle", "gbdt", "--imbalance", "method=focal"], "has no such loss"),
    (["evaluate", "OUT/none", "--policy", "uniform", "--out", "OUT"], "OUT/none: no such log"),
    (["evaluate", "MADE/joined/torn", "--policy", "uniform", "--out", "OUT", "--actions", "32"], "not a joined log"),
    ([*EVALUATE, "--policy", "OUT/none"], "--policy OUT/none: OUT/none/policy.json does not exist"),
    ([*EVALUATE, "--policy", "next="], "--policy : policy.json does not exist"),
    ([*EVALUATE, "--policy", "a b=uniform"], 'name = "a b": must match'),
    ([*EVALUATE, "--policy", "uniform", "--policy", "uniform"], "policies: two have the same name"),
    ([*EVALUATE, "--segment", "colour"], "segment = colour: must be one of issuer, merchant, country, scheme"),
    ([*EVALUATE, "--segment", "hour"], "segment = hour: must be one of issuer"),
    ([*EVALUATE, "--set", "cluster=colour"], "cluster = \"colour\": must be 'row', 'day', 'merchant' or 'issuer'"),
    ([*EVALUATE, "--set", "clip=0"], "clip = 0: must be greater than 0"),
    ([*EVALUATE, "--set", "model.kind=magic"], 'model.kind = "magic": must be one of'),
    ([*EVALUATE, "--format", "magic"], "'magic' is not one of 'payments', 'open_bandit'"),
    ([*EVALUATE, "--format", "open_bandit"], "joined.csv: no such log"),
    ([*EVALUATE, "--address", "127.0.0.1:1"], "--address 127.0.0.1:1: needs --engine ray"),
    (["export-dsjson", "OUT/none", "--out", "OUT"], "no such log"),
    (["export-dsjson", "MADE/joined/torn", "--out", "OUT", "--actions", "32"], "not a joined log"),
    (["import-dsjson", "MADE/none.json", "--out", "OUT.made"], "none.json: no such file"),
    (["run", "absent.yaml"], "absent.yaml: no such file; packaged studies of payments:"),
    (["run", "quick", "--out", "OUT", "--set", "tuning.first=3"], "tuning: shares worlds with those that are scored"),
    (["run", "quick", "--out", "OUT", "--set", "scenarios.0.generations=2"], "a study needs at least 4"),
    (["report", "MADE/log"], "holds no study"),
    (["estimate", "absent"], "absent: no such file"),
    (["serve", "OUT/none", "--log", "OUT"], "OUT/none/policy.json: no such file"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(a) for a, _ in REFUSALS])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(szilard, made, tmp_path, arguments, message):
    out = tmp_path / "out"

    def placed(text):
        return text.replace("OUT", str(out)).replace("MADE", str(made))

    code, text, err = szilard(*map(placed, arguments))
    assert code == 2
    assert placed(message) in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err + text
    assert not out.exists()


def test_every_verb_has_help_with_an_example(szilard):
    listed = szilard("--help")[1]
    verbs = [
        "run",
        "report",
        "simulate",
        "join",
        "train",
        "evaluate",
        "serve",
        "import-dsjson",
        "export-dsjson",
        "estimate",
    ]
    for verb in verbs:
        assert verb in listed
        code, text, _ = szilard(verb, "--help")
        assert code == 0
        assert f"Example: szilard payments {verb}" in " ".join(text.split())
