"""The leaderboard: order, pairs, tables, and the verb that prints them."""

import sys

import numpy as np
import pandas as pd
import pytest

import apps.cli
from apps.chaos import figures
from apps.chaos import leaderboard as module
from apps.chaos.leaderboard import (
    by_system,
    leaderboard,
    pairwise,
    published_leaderboard,
    published_task,
    stored_evidence,
    write_tables,
)
from apps.chaos.protocol import Protocol, Scenario
from apps.chaos.study import ChaosStudy
from core.errors import InputError
from core.stats import average_ranks, holm
from tests.apps.chaos_cases import TINY, evidence

RATE = 0.09


def planted(systems=10):
    generator = np.random.default_rng(0)
    means = {"worst": 5, "best": 60, "middle": 20}
    return evidence({m: x + generator.uniform(0, 4, (systems, 2)) for m, x in means.items()}, [0.9] * systems)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("dysts")
    folder = tmp_path_factory.mktemp("chaos")
    (folder / "study.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_study", lambda *_: [])
        ChaosStudy.load(folder / "study.yaml").run(folder / "out", workers=0, device="cpu", quiet=True)
    return folder / "out"


@pytest.fixture
def szilard(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["szilard", "chaos", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as end:
            apps.cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return call


def test_methods_stand_from_the_best_mean_rank_on_with_their_medians():
    given = planted()
    table = leaderboard(given)
    assert table["method"].tolist() == ["best", "middle", "worst"]
    assert table["mean rank"].tolist() == [1, 2, 3]
    best = given.by_system("best")
    assert table["V1"][0] == pytest.approx(np.median(best))
    assert table["V3"][0] == pytest.approx(2 * np.median(best))
    assert table["systems"].tolist() == [10] * 3
    assert table["sMAPE at 1 Lyapunov time"].is_monotonic_increasing


def test_a_missing_result_ranks_last_and_is_not_counted():
    given = planted()
    given.methods["best"]["valid_samples"][:4] = np.nan
    table = leaderboard(given).set_index("method")
    assert table["systems"]["best"] == 6
    scores = np.stack([given.by_system(m) for m in ("worst", "best", "middle")])
    assert table["mean rank"]["best"] == average_ranks(scores, higher_is_better=True).ranks[1] == 1.8


def test_one_method_or_one_system_has_no_rank():
    alone = evidence({"a": np.array([[10.0], [20.0]])}, [0.9, 0.9])
    assert np.isnan(leaderboard(alone)["mean rank"][0])
    assert leaderboard(alone)["V1"][0] == pytest.approx(15 * RATE)
    single = evidence({"a": np.array([[10.0]]), "b": np.array([[20.0]])}, [0.9])
    assert leaderboard(single)["mean rank"].isna().all()
    unknown = evidence({"a": np.array([[10.0]]), "b": np.array([[20.0]])}, [np.nan])
    assert leaderboard(unknown)["V1"].isna().all()
    assert pairwise(unknown).empty


def test_pairs_turn_their_sign_with_their_order_and_keep_their_p():
    given = planted()
    given.methods["middle"]["valid_samples"][:3] += 60
    turned = type(given)(given.name, given.systems, dict(reversed(given.methods.items())))
    one = pairwise(given).set_index(["first", "second"])
    two = pairwise(turned).set_index(["second", "first"])
    assert len(one) == 3
    for pair in one.index:
        a, b = one.loc[pair], two.loc[pair]
        assert a["median difference"] == pytest.approx(-b["median difference"])
        assert (a["p"], a["adjusted p"], a["systems"]) == pytest.approx((b["p"], b["adjusted p"], b["systems"]))
        assert a["low"] <= a["median difference"] <= a["high"]
        assert a["systems won by the first"] + b["systems won by the first"] == 10
    assert one["adjusted p"].tolist() == pytest.approx(list(holm(one["p"].to_numpy())))


def test_every_system_has_its_row():
    given = planted()
    table = by_system(given)
    assert table.shape == (10, 3)
    assert table["best"].to_numpy() == pytest.approx(given.by_system("best"))


def test_the_published_results_stand_from_the_smallest_error_on():
    table = published_leaderboard()
    error = table["smape_at_one_lyapunov_time"].dropna()
    assert error.is_monotonic_increasing
    assert table["method"][0] == "nbeats"
    assert error.iloc[0] == 29.0
    assert len(table) == table["method"].nunique() > 20


def test_tables_are_written_for_every_scenario_and_say_what_the_study_found(finished, tmp_path):
    written = write_tables(finished, tmp_path / "tables")
    names = {f"{s}-{t}.csv" for s in ("whole", "half") for t in ("leaderboard", "pairwise", "systems")}
    assert {path.name for path in written} == names
    whole = stored_evidence(finished)[0]
    table = pd.read_csv(tmp_path / "tables" / "whole-leaderboard.csv")
    assert table["method"].tolist() == leaderboard(whole)["method"].tolist()
    systems = pd.read_csv(tmp_path / "tables" / "whole-systems.csv", index_col="system")
    assert systems["linear"].to_numpy() == pytest.approx(whole.by_system("linear"))


def test_published_numbers_stand_beside_ours_only_where_the_task_is_theirs(finished, tmp_path, monkeypatch):
    theirs, whole = Protocol(), Scenario(name="s")
    assert published_task(theirs, whole)
    assert published_task(theirs, Scenario(name="s", train_length=1000))
    for other in ({"points": 30}, {"timescale": "lyapunov"}, {"short": 100}, {"context": 512}):
        assert not published_task(theirs.model_copy(update=other), whole)
    for other in ({"train_length": 100}, {"noise": 0.01}, {"observe": 1}, {"embedding": 2}):
        assert not published_task(theirs, Scenario(name="s", **other))
    monkeypatch.setattr(module, "published_task", lambda protocol, scenario: scenario.name == "whole")
    write_tables(finished, tmp_path)
    assert [path.name for path in tmp_path.glob("*-published.csv")] == ["whole-published.csv"]
    published = pd.read_csv(tmp_path / "whole-published.csv")
    assert set(published["method"]) <= {"linear", "esn", "naive_mean"}
    assert {"ours", "published"} <= set(published)


def test_the_verb_ranks_a_study_and_without_one_shows_what_was_published(szilard, finished, tmp_path):
    code, out, err = szilard("leaderboard", finished, "--out", tmp_path / "tables")
    assert (code, err) == (0, "")
    assert out.startswith("whole (V1 to V3: valid times, Lyapunov times)")
    assert "half" in out
    assert out.splitlines()[-1] == str(tmp_path / "tables" / "half-systems.csv")
    best = leaderboard(stored_evidence(finished)[0])["method"][0]
    ranked = next(line for line in out.splitlines() if line.startswith(best))
    assert len(ranked.split()) == 9
    assert "…" not in out
    code, out, err = szilard("leaderboard")
    assert (code, err) == (0, "")
    assert "published (Gilpin 2023)" in out
    assert "nbeats" in out


def test_a_folder_that_holds_no_finished_study_is_refused(szilard, finished, tmp_path):
    assert szilard("leaderboard", tmp_path) == (2, "", f"szilard: error: {tmp_path}: holds no study\n")
    (tmp_path / "config.yaml").write_text((finished / "config.yaml").read_text())
    with pytest.raises(InputError, match="not finished; szilard chaos run goes on with it"):
        stored_evidence(tmp_path)
    (tmp_path / "config.yaml").write_text("study: other\nherd: 3\n")
    code, _, err = szilard("leaderboard", tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 1
