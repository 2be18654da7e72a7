"""Every figure draws from what a study may leave: few systems, failed series, other dimensions, ensembles."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing

from apps.chaos import figures
from apps.chaos.figures import appearance, ensembles, errors, traces, valid_times
from apps.chaos.study import ChaosStudy
from apps.chaos.table import median_interval
from tests.apps.chaos_cases import TINY, evidence, waves

CONTEXT, HORIZON = 120, 400
METHODS = {"linear": 10.0, "esn": 60.0, "naive_mean": 1.0}


def planted(systems=9, lyapunov=None, name="whole", methods=METHODS):
    generator = np.random.default_rng(0)
    scale = generator.uniform(0.5, 2, (systems, 2))
    exponents = np.linspace(0.2, 2, systems) if lyapunov is None else lyapunov
    return evidence({m: x * scale for m, x in methods.items()}, exponents, horizon=HORIZON, name=name)


def series_of(given, channels=3):
    return [waves(s, channels, samples=CONTEXT + HORIZON, seed=i) for i, s in enumerate(given.systems["system"].values)]


def study(tmp_path, *overrides):
    (tmp_path / "study.yaml").write_text(TINY)
    return ChaosStudy.load(tmp_path / "study.yaml", overrides)


def drawn(figure):
    assert isinstance(figure, Drawing)
    for axes in figure.axes:
        # Attractors have no axes, but every panel has something in it.
        assert axes.has_data(), axes.get_title()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=30)
    assert len(picture.getvalue()) > 2000
    return figure


def keys(found):
    return [f.name for f in found]


def test_a_study_draws_each_figure_once_a_scenario_and_one_over_training_lengths(tmp_path):
    whole, half = planted(), planted(name="half", methods={"linear": 8.0, "esn": 30.0})
    whole.methods["esn"] = ensemble(whole.methods["esn"])
    asked = study(tmp_path, "methods.1.members=10")
    found = figures.of_study([whole, half], series_of(whole), asked)
    every = ["valid-times", "cost", "errors", "correlation", "ranks", "traces", "attractors"]
    expected = [f"whole-{k}" for k in [*every, "calibration"]] + [f"half-{k}" for k in every] + ["training-length"]
    assert keys(found) == expected
    for figure in found:
        drawn(figure.draw())
        assert "9 systems" in figure.caption or figure.name.endswith(("ranks", "traces", "attractors"))
        if figure.name.endswith(("errors", "correlation")):
            assert "those of the 9 systems that have a sample" in figure.caption


def test_what_the_results_do_not_allow_is_not_drawn(tmp_path):
    few = planted(systems=3, methods={"linear": 10.0})
    names = keys(figures.of_study([few, planted(systems=3, name="half")], series_of(few), study(tmp_path)))
    assert "whole-correlation" not in names
    assert "whole-ranks" not in names
    assert "half-ranks" in names
    # Scenarios with noise are no points of the curve over training lengths.
    noisy = study(tmp_path, "scenarios.1.noise=0.1")
    assert "training-length" not in keys(figures.of_study([few, few], series_of(few), noisy))
    calm = planted(systems=3, lyapunov=[np.nan, np.nan, 0.9])
    assert figures.of_study([calm, calm], series_of(calm), study(tmp_path)) == []


def test_series_that_failed_and_methods_without_a_number_are_passed_over(tmp_path):
    given = planted()
    series = series_of(given)
    for data in given.methods.values():
        for name in ("valid_samples", "forecast", "smape", "short"):
            data[name][2, 0] = np.nan
            data[name][4] = np.nan
    series[2]["test"][0] = np.nan
    for name in ("valid_samples", "forecast", "smape"):
        given.methods["linear"][name][:] = np.nan
    methods, places = traces.chosen(given)
    assert methods == ["esn", "naive_mean", "linear"]
    assert not {2, 4} & set(places)
    for draw in (traces.traces, traces.attractors):
        drawn(draw(given, series, CONTEXT))
    for draw in (valid_times.swarm, valid_times.cost, valid_times.critical_difference, errors.error_curves):
        drawn(draw(given))


def test_the_best_methods_are_drawn_on_easy_middling_and_hard_systems():
    given = planted()
    methods, places = traces.chosen(given)
    assert methods == ["esn", "linear", "naive_mean"]
    ranked = np.argsort(given.by_system("esn"))
    assert places == [ranked[6], ranked[4], ranked[2]]


@pytest.mark.parametrize("channels", [1, 2])
def test_an_attractor_is_drawn_of_what_was_observed(channels):
    given = planted()
    for name, data in given.methods.items():
        given.methods[name] = data.isel(channel=slice(channels))
    figure = drawn(traces.attractors(given, series_of(given), CONTEXT))
    line = figure.axes[0].lines[0]
    truth = traces.truth_of(series_of(given), traces.chosen(given)[1][0], CONTEXT, HORIZON)
    if channels == 2:
        assert np.array_equal(line.get_ydata(), truth[:, 1])
    else:
        lag = HORIZON - len(line.get_ydata())
        assert lag == 2  # a quarter of ten samples
        assert np.array_equal(line.get_xdata(), truth[lag:, 0])
        assert np.array_equal(line.get_ydata(), truth[:-lag, 0])


def test_systems_of_fewer_channels_than_others_have_their_spectrum():
    given = planted()
    for name, data in given.methods.items():
        given.methods[name] = data.pad(channel=(0, 1))
    figure = traces.attractors(given, series_of(given), CONTEXT)
    assert len(figure.axes[4].lines) == 4  # the truth and three methods


def test_a_forecast_ends_where_it_leaves_the_picture():
    truth = np.array([0.0, 1.0, 0.0, 1.0])
    kept = traces._bounded(np.array([0.5, 1.2, 2.0, 0.5]), truth)
    assert kept.tolist() == pytest.approx([0.5, 1.2, np.nan, np.nan], nan_ok=True)
    assert traces._bounded(truth, truth).tolist() == truth.tolist()


def test_the_curve_over_training_lengths_is_of_medians_in_the_order_of_the_lengths():
    long, short = planted(), planted(methods={"linear": 4.0, "esn": 20.0})
    figure = drawn(valid_times.training_length([long, short], [1000, 100]))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert set(lines) == {"linear", "esn"}
    assert lines["esn"].get_xdata().tolist() == [100, 1000]
    expected = [median_interval(e.by_system("esn")).mean for e in (short, long)]
    assert lines["esn"].get_ydata().tolist() == pytest.approx(expected)


def test_the_swarm_has_a_dot_for_every_system_and_the_best_method_on_top():
    given = planted()
    axes = drawn(valid_times.swarm(given)).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["naive_mean", "linear", "esn"]
    top = axes.collections[-1] if len(axes.collections) == 3 else axes.collections[-2]
    assert len(top.get_offsets()) == 9


def ensemble(data, members=10):
    size = data["smape"].shape
    rank = np.random.default_rng(0).integers(0, members + 1, (*size, 3)).astype(float)
    over = ("system", "replicate", "lead")
    return data.assign(
        rank=((*over, "channel"), rank), spread=(over, data["nrmse"].values), error=(over, 1.1 * data["nrmse"].values)
    )


def test_rank_shares_sum_to_one_and_missing_ranks_are_left_out():
    given = planted()
    given.methods["esn"] = ensemble(given.methods["esn"])
    given.methods["esn"]["rank"][:3] = np.nan
    figure = drawn(ensembles.calibration(given, {"esn": 10}))
    shares = [bar.get_height() for bar in figure.axes[0].patches]
    assert len(shares) == 11
    assert sum(shares) == pytest.approx(1)


def test_no_two_of_thirty_methods_look_alike_and_each_looks_alike_in_every_scenario():
    many = planted(systems=2, methods={f"m{i}": 10.0 for i in range(30)})
    look = appearance.styles(many)
    assert len({(style["color"], style["ls"]) for style in look.values()}) == 30
    few = planted(systems=2, methods={"m7": 10.0, "m20": 10.0})
    assert appearance.styles(replace(few, everyone=tuple(look))) == {m: look[m] for m in ("m7", "m20")}
