"""What a forecaster is shown, what it is tuned on, how it is scored, and which configs are refused."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from apps.chaos import groups
from apps.chaos.fitting import DIVERGED, fit_scaled
from apps.chaos.forecasters import Ensemble, Trivial
from apps.chaos.forecasters.linear import Linear
from apps.chaos.forecasters.naive import NaiveDrift, NaiveMean
from apps.chaos.groups import forecast_groups, tuning_groups
from apps.chaos.metrics import smape
from apps.chaos.protocol import Method, Protocol, Scenario
from apps.chaos.runs import SystemSeries
from apps.chaos.study import ChaosStudy
from core.errors import InputError
from simulators.chaos import embedding_delay, load, names
from tests.apps.chaos_cases import TINY, forecasts, ramps, tune, waves

PROTOCOL = Protocol(points=30, context=100, horizon=60, short=50, validation=40, replicates=2)
WHOLE = Scenario(name="whole")


def method(kind="naive_mean", grid=None, **settings):
    own = {k: settings.pop(k) for k in ("normalize", "at_once", "members") if k in settings}
    return Method(name=kind, forecaster={"kind": kind, **settings}, grid=grid, **own)


def study(tmp_path, *overrides):
    path = tmp_path / "study.yaml"
    path.write_text(TINY)
    return ChaosStudy.load(path, overrides)


# ---- what is shown


@pytest.mark.parametrize("length", [None, 30])
def test_the_training_part_ends_where_the_truth_begins_and_is_cut_at_its_old_end(length):
    (group,) = forecast_groups([ramps()], Scenario(name="s", train_length=length), PROTOCOL)
    for row in range(2):
        first = 1000 * row + 100
        assert group.train[row, :, 0].tolist() == list(range(first - (length or 100), first))
        assert group.truth[row, :, 0].tolist() == list(range(first, first + 60))
    assert group.members == ((0, 0), (0, 1))


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_each_validation_block_is_forecast_from_all_that_is_before_it(fold):
    protocol = PROTOCOL.model_copy(update={"folds": 3})
    (group,) = tuning_groups([ramps(tuning=220)], WHOLE, protocol, fold)
    begin = 220 - 40 * (fold + 1)
    assert (group.train[0, :, 0] + 1000).tolist() == list(range(begin))
    assert (group.truth[0, :, 0] + 1000).tolist() == list(range(begin, begin + 40))


def test_tuning_on_a_series_of_its_own_never_sees_the_test_series():
    (group,) = tuning_groups([ramps(tuning=140)], WHOLE, PROTOCOL, 0)
    assert len(group) == 1
    assert group.train.max() < group.truth.min() < 0
    assert group.train.shape[1] == PROTOCOL.context


def test_tuning_on_contexts_never_sees_beyond_them():
    protocol = PROTOCOL.model_copy(update={"tuning": "context", "folds": 2, "validation": 20})
    for fold in range(2):
        (group,) = tuning_groups([ramps()], WHOLE, protocol, fold)
        assert group.members == ((0, 0), (0, 1))
        assert (group.train[1, -1, 0] - 1000, group.truth[1, -1, 0] - 1000) == (79 - 20 * fold, 99 - 20 * fold)


def test_only_a_scenario_that_says_so_tunes_with_as_many_samples_as_are_fitted():
    short = Scenario(name="short", train_length=30)
    (group,) = tuning_groups([ramps(tuning=140)], short, PROTOCOL, 0)
    assert group.train.shape[1] == 100
    (group,) = tuning_groups([ramps(tuning=140)], short.model_copy(update={"retune": True}), PROTOCOL, 0)
    assert (group.train[0, :, 0] + 1000).tolist() == list(range(70, 100))


def test_noise_is_of_the_level_asked_for_and_touches_only_what_is_fitted():
    data = waves(samples=3000, replicates=3)
    protocol = PROTOCOL.model_copy(update={"context": 2900, "horizon": 100})
    noisy, clean = (forecast_groups([data], Scenario(name="s", noise=level), protocol)[0] for level in (0.1, 0.0))
    assert torch.equal(noisy.truth, clean.truth)
    level = (noisy.train - clean.train).std(1) / clean.train.std(1)
    assert level.flatten().tolist() == pytest.approx([0.1] * 6, rel=0.1)
    again = forecast_groups([data], Scenario(name="s", noise=0.1), protocol)[0]
    assert torch.equal(again.train, noisy.train)
    other = forecast_groups([data], Scenario(name="s", noise=0.1), protocol.model_copy(update={"seed": 1}))[0]
    assert not torch.equal(other.train, noisy.train)


def test_tuning_meets_noise_also_on_the_block_that_it_scores():
    data = waves(tuning=3000)
    protocol = PROTOCOL.model_copy(update={"context": 2000, "validation": 1000})
    noisy, clean = (tuning_groups([data], Scenario(name="s", noise=level), protocol, 0)[0] for level in (0.1, 0.0))
    for seen, true in ((noisy.train, clean.train), (noisy.truth, clean.truth)):
        level = (seen - true).std(1) / clean.train.std(1)
        assert level.flatten().tolist() == pytest.approx([0.1] * 2, rel=0.1)


def test_only_the_first_channels_are_observed():
    (group,) = forecast_groups([ramps(channels=3)], Scenario(name="s", observe=1), PROTOCOL)
    assert (group.train.shape[2], group.truth.shape[2], group.scored) == (1, 1, 1)
    assert group.truth[0, 0].tolist() == [100.0]


def test_of_delay_vectors_the_latest_copy_comes_first_and_alone_is_scored():
    data = waves()
    scenario = Scenario(name="s", observe=1, embedding=3)
    (group,) = forecast_groups([data], scenario, PROTOCOL)
    delay = embedding_delay(data["train"].values[:, 0])
    assert delay > 1
    series = torch.from_numpy(data["test"].values[..., 0])
    assert group.scored == 1
    assert group.train.shape == (2, 100 - 2 * delay, 3)
    for copy in range(3):
        late = copy * delay
        assert torch.equal(group.train[..., copy], series[:, 2 * delay - late : 100 - late])
        assert torch.equal(group.truth[..., copy], series[:, 100 - late : 160 - late])
    (both,) = forecast_groups([data], Scenario(name="s", embedding=2), PROTOCOL)
    assert torch.equal(both.truth[..., : both.scored], torch.from_numpy(data["test"].values[:, 100:160]))


def test_the_published_grid_is_stretched_and_the_exact_one_is_not():
    pytest.importorskip("dysts")
    protocol = Protocol(
        points=20, context=30, horizon=10, short=5, validation=5, replicates=1, burn_in=5, tolerance=1e-6
    )
    period = load("Lorenz").period
    for grid, spacing in (("exact", period / 20), ("published", period * 40 / (20 * 39))):
        run = SystemSeries(system="Lorenz", protocol=protocol.model_copy(update={"grid": grid}))
        data = run.execute({}, None)
        assert data.attrs["dt"] == pytest.approx(spacing, rel=1e-12)
        assert (data["train"].shape, data["test"].shape) == ((35, 3), (1, 40, 3))
        assert bool(np.isfinite(data["test"]).all())


def test_series_of_a_system_are_different_and_those_of_the_seed():
    pytest.importorskip("dysts")
    protocol = Protocol(
        points=20, context=30, horizon=10, short=5, validation=5, replicates=2, burn_in=5, tolerance=1e-6
    )
    first, again = (SystemSeries(system="Lorenz", protocol=protocol).execute({}, None) for _ in range(2))
    assert first.identical(again)
    test = first["test"].values
    assert not np.allclose(test[0], test[1])
    assert not np.allclose(test[0, :35], first["train"].values)
    other = SystemSeries(system="Lorenz", protocol=protocol.model_copy(update={"seed": 1})).execute({}, None)
    assert not np.allclose(other["test"], test)


# ---- how it is fitted


def test_series_are_standardised_by_their_training_part_and_forecasts_come_back_in_raw_units(monkeypatch):
    seen = {}

    def fit(self, train, fitting):
        seen.update(train=train, fitting=fitting)
        return Trivial(lambda horizon: torch.ones(2, horizon, 2, dtype=torch.float64))

    monkeypatch.setattr(NaiveMean, "fit", fit)
    (group,) = forecast_groups([waves()], WHOLE, PROTOCOL)
    fitted = fit_scaled(NaiveMean(), group.train, seeds=group.seeds)
    assert seen["train"].mean(1).abs().max() < 1e-12
    assert seen["train"].std(1).flatten().tolist() == pytest.approx([1.0] * 4)
    forecast, diverged = fitted.forecast(3)
    assert torch.allclose(forecast[:, 0], group.train.mean(1) + group.train.std(1))
    assert not diverged.any()
    fit_scaled(NaiveMean(), group.train, seeds=group.seeds, normalize="none")
    assert torch.equal(seen["train"], group.train)


def test_a_constant_channel_stays_finite():
    train = waves()["test"].values[:, :100].copy()
    train[..., 1] = 7.0
    forecast, _ = fit_scaled(NaiveMean(), torch.from_numpy(train), seeds=(0, 1)).forecast(2)
    assert forecast[..., 1].tolist() == [[7.0, 7.0]] * 2


def test_a_forecast_that_leaves_is_held_also_where_it_overflows_and_one_that_is_no_number_stays_so(monkeypatch):
    nan, inf = float("nan"), float("inf")
    scaled = torch.tensor([[0, 1e5, 1e7, -inf, nan, nan], [0, 1, 2, 3, 4, 5], [0, nan, nan, nan, nan, nan]]).double()
    monkeypatch.setattr(NaiveMean, "fit", lambda *_: Trivial(lambda _: scaled[..., None]))
    train = torch.randn(3, 50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = fit_scaled(NaiveMean(), train, seeds=(0, 1, 2))
    forecast, diverged = fitted.forecast(6)
    assert diverged.tolist() == [True, False, True]
    reached = (forecast[0, :, 0] - fitted.offset[0, 0]) / fitted.scale[0, 0]
    assert reached.tolist() == pytest.approx([0, 1e5, DIVERGED, -DIVERGED, -DIVERGED, -DIVERGED])
    assert forecast[2, :, 0].isnan().tolist() == [False, True, True, True, True, True]


def test_every_method_and_every_length_gets_the_same_seeds():
    series = [waves("A"), waves("B", channels=3)]
    groups = {
        length: forecast_groups(series, Scenario(name=f"s{length}", train_length=length), PROTOCOL)
        for length in (50, 90)
    }
    seeds = {
        length: {m: s for g in found for m, s in zip(g.members, g.seeds, strict=True)}
        for length, found in groups.items()
    }
    assert seeds[50] == seeds[90]
    assert len(set(seeds[50].values())) == 4
    # A system keeps its seeds whatever is beside it.
    (alone,) = forecast_groups([series[1]], WHOLE, PROTOCOL)
    assert list(alone.seeds) == [seeds[50][1, 0], seeds[50][1, 1]]


# ---- how it is scored


def test_smape_is_of_raw_units_and_not_of_standardised_ones(tmp_path):
    data = waves()
    found = forecasts(tmp_path, [data], method(), WHOLE, PROTOCOL)
    truth = data["test"].values[:, 100:150]
    mean = data["test"].values[:, :100].mean(1, keepdims=True)
    expected = 200 * np.abs(truth - mean) / (np.abs(truth) + np.abs(mean))
    assert found["short"].sel(metric="smape").values[0] == pytest.approx(expected.mean((1, 2)))
    # A mean is 200 off where series are standardised.
    assert found["short"].sel(metric="smape").max() < 30


def test_a_series_that_failed_is_left_out_and_no_other_is_touched(tmp_path):
    whole = [waves("A", seed=1), waves("B", seed=2)]
    broken = [whole[0].copy(deep=True), whole[1]]
    broken[0]["test"][1, 120:] = np.nan
    a, b = (
        forecasts(tmp_path / name, series, method("naive_drift"), WHOLE, PROTOCOL)
        for name, series in (("a", whole), ("b", broken))
    )
    for name in set(a) - {"fit_seconds", "forecast_seconds"}:
        for kept in ({"system": 1}, {"system": 0, "replicate": 0}):
            one, two = (x[name].isel(kept).values.astype(float) for x in (a, b))
            assert np.array_equal(one, two, equal_nan=True), name
    lost = b.isel(system=0, replicate=1)
    assert all(lost[name].astype(float).isnull().all() for name in ("forecast", "valid_samples", "smape", "diverged"))


def test_systems_of_other_dimensions_stand_side_by_side(tmp_path):
    series = [waves("A", channels=3), waves("B", channels=4), waves("C", channels=3)]
    found = forecasts(tmp_path, series, method("linear", lags=3, grid={}), WHOLE, PROTOCOL)
    assert found["system"].values.tolist() == ["A", "B", "C"]
    assert dict(found["forecast"].sizes) == {"system": 3, "replicate": 2, "sample": 60, "channel": 4}
    assert np.isfinite(found["forecast"].values[1]).all()
    assert np.isnan(found["forecast"].values[[0, 2], ..., 3]).all()
    alone = forecasts(tmp_path / "alone", series[1:2], method("linear", lags=3, grid={}), WHOLE, PROTOCOL)
    assert found["smape"].values[1] == pytest.approx(alone["smape"].values[0])


def test_a_truth_that_does_not_move_leaves_no_valid_sample_and_ends_no_other_series(tmp_path):
    still = waves("A")
    still["test"][0, 100:, 1] = 5.0
    found = forecasts(tmp_path, [still], method("naive_drift"), WHOLE, PROTOCOL)
    assert found["valid_samples"].sel(definition="V1").values[0, 0] == 0
    assert found["valid_samples"].sel(definition="V1").values[0, 1] > 0


class Cloud(Ensemble):
    """The first channel of the truth a constant away, and around it members at equal distances."""

    notes: ClassVar = {}

    def __init__(self, train):
        self.train = train

    def forecast(self, horizon):
        return self.train[:, -1:].repeat(1, horizon, 1)

    def sample(self, horizon, members, generator):
        drawn = self.forecast(horizon)[:, None] + torch.linspace(-1, 1, members)[:, None, None]
        drawn[1, 0, 5:] = float("nan")
        return drawn


def test_ensembles_are_scored_in_standard_deviations_of_the_truth(tmp_path, monkeypatch):
    monkeypatch.setattr(NaiveMean, "fit", lambda self, train, fitting: Cloud(train))
    data = waves()
    found = forecasts(tmp_path, [data], method(members=5, normalize="none"), WHOLE, PROTOCOL)
    lead = found["lead"].values
    past, truth = data["test"].values[:, 99:100], data["test"].values[:, 100:160]
    std = truth.std(1)[:, None]
    members = past[..., None] + np.linspace(-1, 1, 5)
    error = np.sqrt((((past - truth) / std) ** 2).mean(-1))[:, lead - 1]
    first = found.isel(system=0, replicate=0)
    assert first["error"].values == pytest.approx(error[0], rel=1e-6)
    spread = np.sqrt((np.var(np.linspace(-1, 1, 5), ddof=1) / std[0, 0] ** 2).mean())
    assert first["spread"].values == pytest.approx(np.full(len(lead), spread))
    rank = (members < truth[..., None]).sum(-1)[:, lead - 1]
    assert np.array_equal(first["rank"], rank[0])
    # A member that is no number has no rank, rather than the lowest.
    assert np.isnan(found["rank"].values[0, 1, lead > 5]).all()
    assert np.array_equal(found["rank"].values[0, 1, lead <= 5], rank[1, lead <= 5])
    assert "rank" not in forecasts(tmp_path / "none", [data], method(), WHOLE, PROTOCOL)


# ---- what is tuned


def test_candidates_come_in_the_order_of_the_grid_the_last_field_fastest():
    chosen = method("ngrc", grid={"order": [2, 3], "ridge": [1e-6, 1e-3]})
    assert [(c.order, c.ridge) for c in chosen.candidates()] == [(2, 1e-6), (2, 1e-3), (3, 1e-6), (3, 1e-3)]
    assert all(c.delay == chosen.forecaster.delay for c in chosen.candidates())
    assert [c.lags for c in method("linear").candidates()] == list(Linear.grid["lags"])
    assert method("linear", grid={}).candidates() == [Linear()]


def test_the_candidate_with_the_smallest_raw_smape_is_chosen_and_forecasts(tmp_path):
    series = [waves("A", tuning=140, seed=1), waves("B", tuning=140, seed=2, channels=3)]
    arm = method("linear", grid={"lags": [1, 2, 8]})
    tuned = tune(tmp_path / "tune", series, arm, WHOLE, PROTOCOL)
    for place, data in enumerate(series):
        values = torch.from_numpy(data["train"].values[None])
        for c, candidate in enumerate(arm.candidates()):
            forecast, _ = fit_scaled(candidate, values[:, :100], seeds=(0,)).forecast(40)
            expected = float(smape(values[0, 100:], forecast[0]))
            assert float(tuned["score"][c, place]) == pytest.approx(expected, rel=1e-6)
    assert np.array_equal(tuned["chosen"], tuned["score"].argmin("candidate"))
    tuned["chosen"][:] = [0, 2]
    found = forecasts(tmp_path / "found", series, arm, WHOLE, PROTOCOL, tuned)
    assert found["tuned_lags"].values.tolist() == [1, 8]
    seen = torch.from_numpy(series[1]["test"].values)
    forecast, _ = fit_scaled(Linear(lags=8), seen[:, :100], seeds=(0, 1)).forecast(60)
    assert found["forecast"].values[1] == pytest.approx(forecast.numpy(), rel=1e-5)


def test_a_candidate_too_long_for_a_fold_or_without_a_number_is_never_chosen(tmp_path, monkeypatch):
    protocol = PROTOCOL.model_copy(update={"tuning": "context", "folds": 2, "validation": 20})
    arm = method("linear", grid={"lags": [60, 1]})  # 71 samples; the second fold has 60
    tuned = tune(tmp_path / "a", [waves()], arm, WHOLE, protocol)
    assert tuned["score"].values[:, 0].tolist() == [np.inf, pytest.approx(float(tuned["score"][1, 0]))]
    assert tuned["chosen"].values.tolist() == [1]

    fit = Linear.fit

    def failing(self, train, fitting):
        bad = self.lags == 2
        return Trivial(lambda h: train.new_full((len(train), h, 2), float("nan"))) if bad else fit(self, train, fitting)

    monkeypatch.setattr(Linear, "fit", failing)
    tuned = tune(tmp_path / "b", [waves()], method("linear", grid={"lags": [2, 1]}), WHOLE, PROTOCOL)
    assert tuned["chosen"].values.tolist() == [1]


def test_a_system_whose_delay_vectors_are_too_few_has_rows_without_numbers(tmp_path, monkeypatch):
    delays = iter((7, 2, 7, 7))
    monkeypatch.setattr(groups, "embedding_delay", lambda series: next(delays))
    scenario, arm = Scenario(name="s", embedding=15), method("linear", lags=2, grid={})
    found = forecasts(tmp_path / "one", [waves("A"), waves("B")], arm, scenario, PROTOCOL)
    assert np.isnan(found["valid_samples"].values[0]).all()
    assert np.isfinite(found["valid_samples"].values[1]).all()
    # Where nothing can be forecast there are no rows, which the study fills.
    none = forecasts(tmp_path / "none", [waves("A"), waves("B")], arm, scenario, PROTOCOL)
    assert "forecast" not in none
    assert none["system"].values.tolist() == ["A", "B"]


# ---- what is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods.0.grid={bogus: [1]}", "method linear: grid: bogus: must be among lags"),
        ("methods.0.grid={lags: []}", "method linear: grid: needs at least one value for each field"),
        ("methods.0.grid={lags: [0]}", "lags = 0: must be greater than or equal to 1"),
        ("methods.1.name=linear", "methods: two have the same name"),
        ("scenarios.1.name=whole", "scenarios: two have the same name"),
        ("systems=[Lorenz, Lorenz]", "systems: one is named twice"),
        ("scenarios.1.methods=[lynear]", "scenario half: methods: lynear: must be among esn, linear, naive_mean"),
        ("scenarios.1.train_length=121", "train_length = 121: must be at most the context, 120"),
        ("methods.0.grid={lags: [100]}", "scenario half: linear needs at least 111 training samples, there are 60"),
        ("protocol.short=61", "short = 61: must be at most the horizon, 60"),
        ("protocol={tuning: context, context: 100, folds: 5, validation: 40}", "5 folds of 40 samples need 220"),
        ("methods.0.forecaster.kind=nbeets", "kind = \"nbeets\": must be one of 'nbeats'"),
        ("claims=[flat_earth]", "flat_earth"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(tmp_path, override, message):
    with pytest.raises(InputError) as refused:
        study(tmp_path, override)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_an_unknown_system_is_refused_with_the_nearest_names(tmp_path):
    pytest.importorskip("dysts")
    with pytest.raises(InputError, match="'Lorentz' is not in the catalogue; the nearest are Lorenz"):
        study(tmp_path, "systems=[Rossler, Lorentz]").runs()
    assert len(study(tmp_path, "systems=all").series()) == len(names())
    assert len(study(tmp_path, "systems=published").series()) == 133


def test_a_series_too_short_for_a_forecaster_is_refused():
    with pytest.raises(InputError, match="linear: 35 training samples: needs at least 36"):
        fit_scaled(Linear(lags=25), torch.zeros(1, 35, 2), seeds=(0,))
    with pytest.raises(ValidationError):
        Scenario(name="s", train_length=11)


def test_only_an_ensemble_can_be_sampled():
    fitted = fit_scaled(NaiveDrift(), torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0)), seeds=(0,))
    assert not fitted.probabilistic
    with pytest.raises(InputError, match="one forecast, not an ensemble"):
        fitted.sample(2, 3, torch.Generator())


def test_a_forecast_of_another_shape_is_refused():
    class Narrow(Linear):
        def fit(self, train, fitting):
            return Trivial(lambda horizon: train.new_zeros(len(train), horizon, 1))

    fitted = fit_scaled(Narrow(lags=3), torch.rand(2, 40, 3, generator=torch.Generator().manual_seed(0)), seeds=(0, 1))
    with pytest.raises(InputError, match=r"forecast: \(2, 5, 1\): must be \(series, horizon, channels\), \(2, 5, 3\)"):
        fitted.forecast(5)


def test_a_study_of_no_systems_is_refused():
    with pytest.raises(InputError, match="systems"):
        ChaosStudy.load("quick", ["systems=[]"])
