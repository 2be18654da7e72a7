"""Figures of the turbulence app: all are drawn, from whatever a study has left behind."""

import io
import math

import numpy as np
import pytest
import xarray as xr

from apps.turbulence import figures
from apps.turbulence.claims import Evidence
from apps.turbulence.figures import appearance
from apps.turbulence.figures import extremes as extremes_module
from apps.turbulence.figures.agents import coefficient_density
from apps.turbulence.figures.appearance import Entry, arms_of, band, closures_of, headline, stayed
from apps.turbulence.figures.distribution import _edges, _exceedance
from apps.turbulence.figures.spectra import spectra
from apps.turbulence.metrics import mean_spectrum, reference_spectrum
from apps.turbulence.runs import ClosureSettings

TIMES, DISCARD = np.arange(1, 61) * 0.5, 5.0
CENTRES = np.linspace(-9.95, 9.95, 200)


def spectrum(n, luck, *shape):
    """A steep spectrum with some noise, along ``axis`` and ``k``."""
    k = np.arange(n // 2)
    return (1.0 + k) ** -2.0 * np.exp(0.1 * luck.normal(size=(*shape, 2, n // 2)))


def counted(luck, *shape):
    """Histograms of a Gaussian and what goes with them."""
    values = luck.normal(size=(*shape, 4000))
    edges = _edges(CENTRES)
    counts = np.array([np.histogram(v, edges)[0] for v in values.reshape(-1, 4000)]).reshape(*shape, 200)
    exceeded = np.stack([(np.abs(values) > q).sum(-1) for q in (2, 3, 4)], -1)
    return counts, exceeded, np.full(shape, 4000)


def reference(n=16, snapshots=4):
    luck = np.random.default_rng(0)
    counts, exceeded, points = counted(luck)
    data = {
        f"{z}_{b}": (("snapshot", "axis", "k"), spectrum(n, luck, snapshots)) for z in "ZE" for b in ("full", "les")
    }
    data |= {"counts": ("omega", counts), "exceeded": ("q", exceeded), "points": ((), int(points)), "sigma": ((), 2.0)}
    data |= {name: ("snapshot", luck.uniform(1, 2, snapshots)) for name in ("energy", "enstrophy")}
    data |= {
        "largest": ("snapshot", luck.uniform(7, 8, snapshots)),
        "field": (("x", "y"), 2 * luck.normal(size=(n, n))),
    }
    coords = {"snapshot": np.arange(1, snapshots + 1), "axis": ["x", "y"], "k": np.arange(n // 2)}
    return xr.Dataset(data, {**coords, "q": [2, 3, 4], "omega": CENTRES})


def evaluation(n=16, starts=3, seed=1, *, constants=None, lost=(), taken=0.01, zonal=False, times=TIMES):
    """What an ensemble might have left behind; the starts ``lost`` blew up half way."""
    luck = np.random.default_rng(seed)
    shape = (starts,) if constants is None else (len(constants), starts)
    lead = ("start",) if constants is None else ("constant", "start")
    counts, exceeded, points = counted(luck, *shape)
    size, half = len(times), n // 2
    data = {z: (("time", "axis", "k"), spectrum(n, luck, *shape, size)) for z in "ZE"}
    data |= {name: (("time",), luck.uniform(1, 2, (*shape, size))) for name in ("energy", "enstrophy")}
    data["largest"] = (("time",), luck.gumbel(6, 0.5, (*shape, size)))
    if zonal:
        data["zonal"] = (("time", "y"), luck.normal(size=(*shape, size, n)))
    for name in ("energy_transfer", "enstrophy_transfer"):
        data[name] = (("shell",), taken * luck.uniform(size=(*shape, half)))
    data |= {"backscatter": ((), luck.uniform(0, 0.3, shape)), "dissipation": ((), np.ones(shape))}
    data |= {"counts": (("omega",), counts), "exceeded": (("q",), exceeded), "points": ((), points)}
    data["final"] = (("x", "y"), 2 * luck.normal(size=(*shape, n, n)))
    for _, values in data.values():
        for start in lost:
            of_start = values[(..., start) + (slice(None),) * (values.ndim - len(shape))]
            if values.ndim > len(shape) and values.shape[len(shape)] == size:
                of_start = values[
                    (..., start, slice(size // 2, None)) + (slice(None),) * (values.ndim - len(shape) - 1)
                ]
            if values.dtype.kind == "f":
                of_start[...] = np.nan
    coords = {"time": times, "axis": ["x", "y"], "k": np.arange(half), "shell": np.arange(half), "q": [2, 3, 4]}
    x = np.arange(n) * 2 * math.pi / n
    coords |= {"omega": CENTRES, "start": np.arange(16, 16 + starts), "x": x, "y": x}
    if constants is not None:
        coords["constant"] = list(constants)
    found = {name: ((*lead, *dims), values) for name, (dims, values) in data.items()}
    return xr.Dataset(found, coords, {"n": n, "sigma": 2.0, "discard": DISCARD, "until": float(times[-1])})


def policy(n=16, starts=3, seed=1, *, action="leith", **options):
    luck = np.random.default_rng(seed)
    found = evaluation(n, starts, seed, **options).assign_attrs(action=action)
    c = (("start", "x", "y"), 0.006 + 0.003 * luck.normal(size=(starts, n, n)))
    gradient = (("start", "x", "y"), luck.gamma(2, 10, (starts, n, n)))
    curve = {"score": ("update", -1 + luck.uniform(size=6)), "steps": ("update", 1000 * np.arange(1, 7))}
    return found.assign(coefficient=c, gradient=gradient, **curve)


SETTINGS = {
    "none": ClosureSettings(name="none", closure="none"),
    "leith": ClosureSettings(name="leith", closure="leith", constants=(0.1, 0.17, 0.3)),
    "dleith_mean": ClosureSettings(name="dleith_mean", closure="dleith", clip="mean_then_clip"),
    "dleith_product": ClosureSettings(name="dleith_product", closure="dleith", clip="positive_product"),
}


def evidence(n=16, starts=3, *, names=tuple(SETTINGS), policies=(), lost=None, **options):
    """Closures by name, those in ``lost`` without the starts given there."""
    closures, training = {}, {}
    for seed, name in enumerate(names):
        settings = SETTINGS[name]
        constants = settings.constants or (math.nan,)
        given = {"constants": constants, "taken": 0.0 if name == "none" else 0.01, **options}
        closures[name] = (settings, evaluation(n, starts, seed, lost=(lost or {}).get(name, ()), **given))
        if len(constants) > 1:
            training[name] = evaluation(n, starts, 50 + seed, **given)
    once = {name: (settings, [data]) for name, (settings, data) in closures.items()}
    return Evidence(reference(n), once, training, list(policies), "smarl", "full", 30.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(extremes_module, "RESAMPLES", 3)
    monkeypatch.setattr(appearance, "RESAMPLES", 50)


def labelled(axes, which):
    """Whether an axis has a label, from its own panel or from one that shares it, or names as ticks."""
    siblings = (axes.get_shared_x_axes() if which == "x" else axes.get_shared_y_axes()).get_siblings(axes)
    ticks = [text.get_text() for text in getattr(axes, f"get_{which}ticklabels")()]
    return any(getattr(a, f"get_{which}label")() for a in siblings) or any(t[:1].isalpha() for t in ticks)


def drawn(found, *, rendered=False):
    """Every figure, drawn and its labels looked at; by name without the scenario."""
    pictures = {}
    for figure in found:
        drawing = figure.draw()
        if rendered:
            drawing.savefig(io.BytesIO(), dpi=25)
        for axes in drawing.axes:
            if axes.get_label() == "<colorbar>":
                assert axes.get_xlabel() or axes.get_ylabel(), figure.name
            elif axes.axison:
                assert labelled(axes, "x"), figure.name
                assert labelled(axes, "y"), figure.name
        assert figure.caption.startswith("flow: ")
        pictures[figure.name.removeprefix("flow_")] = drawing
    assert len(pictures) == len(found)
    return pictures


EVERYTHING = ["fields", "spectra", "tuning", "distribution", "transfers", "learning", "extremes", "long_run"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [16, 256])
def test_all_figures_of_a_scenario_are_drawn_on_any_grid(n):
    learned = {"smarl": [policy(n, seed=8), policy(n, seed=9)], "other": [policy(n, action="smagorinsky")]}
    truth = evaluation(n, seed=7, taken=0.0)
    found = figures.of_scenario("flow", evidence(n, policies=learned["smarl"]), learned, truth)
    agents = [f"{arm}_{kind}" for arm in learned for kind in ("coefficient", "fields")]
    assert sorted(drawn(found, rendered=n == 16)) == sorted([*EVERYTHING, *agents])
    captions = {f.name: f.caption for f in found}
    assert "95 % bootstrap intervals of the mean over 3 starts (of means over 1 or 2" in captions["flow_spectra"]
    assert "share of the distance" in captions["flow_extremes"]
    assert not any("blew up:" in caption for caption in captions.values())


@pytest.mark.filterwarnings("error")
def test_what_blew_up_is_left_out_and_named():
    arms = {"smarl": [policy(seed=8, lost=(0,)), policy(seed=9, lost=(0, 1))], "wild": [policy(lost=(0, 1, 2))]}
    lost = {"none": (0, 1, 2), "leith": (1,), "dleith_mean": (0,)}
    found = figures.of_scenario("flow", evidence(policies=arms["smarl"], lost=lost), arms, evaluation(lost=(2,)))
    names = drawn(found, rendered=True)
    assert "wild_coefficient" not in names
    assert "smarl_coefficient" in names
    captions = {f.name.removeprefix("flow_"): f.caption for f in found}
    for name in ("spectra", "distribution", "transfers"):
        assert "3 of 6 of smarl, 3 of 3 of wild" in captions[name]
    assert "3 of 3 of none" in captions["spectra"]
    assert "1 of 3 of resolved" in captions["distribution"]
    assert "3 of 6 simulations" in captions["smarl_coefficient"]
    assert "6 of 9 blew up" in captions["long_run"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("names", "arms", "missing"),
    [
        (("none",), {}, {"tuning", "transfers", "learning", "long_run"}),
        ((), {"smarl": [policy()]}, {"tuning"}),
        (("leith",), {}, {"learning", "long_run"}),
        (("dleith_mean", "dleith_product"), {}, {"tuning", "learning", "long_run"}),
    ],
)
def test_a_scenario_without_some_of_them(names, arms, missing):
    held = evidence(names=names, policies=arms.get("smarl", ()))
    names_drawn = {n for n in drawn(figures.of_scenario("flow", held, arms, None)) if not n.startswith("smarl")}
    assert names_drawn == set(EVERYTHING) - missing


@pytest.mark.filterwarnings("error")
def test_one_start_has_no_band():
    held = evidence(starts=1, policies=[policy(starts=1)])
    found = figures.of_scenario("flow", held, {"smarl": held.policies}, None)
    pictures = drawn(found)
    assert "One start, hence no bands." in next(f.caption for f in found if f.name == "flow_spectra")
    # Only the reference has one, over its snapshots.
    assert [len(axes.collections) for axes in pictures["spectra"].axes] == [1, 1, 1, 1]


@pytest.mark.filterwarnings("error")
def test_jets_are_drawn_where_there_is_a_zonal_wind():
    held = evidence(policies=[policy(zonal=True, lost=(0, 1, 2)), policy(seed=2, zonal=True)], zonal=True)
    names = drawn(figures.of_scenario("flow", held, {"smarl": held.policies}, evaluation(zonal=True)))
    assert {"jets_time", "jets_profiles"} < set(names)
    # Resolved, none, dynamic Leith, tuned and agents, and a colour bar.
    assert len(names["jets_time"].axes) == 6


def test_simulations_too_short_for_extremes_have_no_such_figure():
    held = evidence(times=TIMES[:16])
    assert "extremes" not in drawn(figures.of_scenario("flow", held, {}, None))


def test_the_lines_of_the_spectra_are_the_means_over_starts():
    held = evidence()
    entries = closures_of(held)
    assert [e.kind for e in entries] == ["none", "leith", "dleith"]
    drawing = spectra(held.reference, entries, "full")
    known = reference_spectrum(held.reference, "full").values[1:]
    above, below = drawing.axes[0], drawing.axes[2]
    line = {text: handle for handle, text in zip(*above.get_legend_handles_labels(), strict=True)}
    np.testing.assert_allclose(line["reference"].get_ydata(), known)
    expected = mean_spectrum(held.evaluated("none")[0]).mean("start").values[1:]
    np.testing.assert_allclose(line["none"].get_ydata(), expected)
    np.testing.assert_allclose(next(x for x in below.lines if x.get_label() == "none").get_ydata(), expected / known)


def test_a_start_is_the_mean_over_the_training_seeds_that_stayed_finite():
    first, second = policy(seed=1, lost=(0, 1)), policy(seed=2, lost=(1,))
    entry = arms_of({"smarl": [first, second]})[0]
    measure = entry.over_starts(lambda found: found["backscatter"].values)
    a, b = first["backscatter"].values, second["backscatter"].values
    np.testing.assert_allclose(measure, [b[0], (a[2] + b[2]) / 2])
    assert (entry.lost, entry.simulations) == (3, 6)
    assert stayed(first).tolist() == [False, False, True]
    assert entry.runs("largest").shape[0] == 3


def test_the_headline_has_the_tuned_constant_and_the_better_dynamic_model():
    held = evidence()
    labels = [entry.label for entry in headline(held, [])]
    assert labels[0] == "none"
    assert labels[1] == held.best(("dleith",))
    assert labels[2] == f"leith ({float(held.evaluated('leith')[0]['constant']):g})"


def test_exceedances_are_those_of_the_values():
    values = np.random.default_rng(3).normal(size=5000)
    counts = np.histogram(values, _edges(CENTRES))[0][None].astype(float)
    levels, share = _exceedance(counts, _edges(CENTRES))
    assert levels[0] == pytest.approx(0, abs=1e-9)
    for q, p in zip(levels[:40], share[0, :40], strict=True):
        # Edges are rounded: a value beside one may fall on its other side.
        assert p == pytest.approx((np.abs(values) > q).mean(), abs=2 / 5000)


@pytest.mark.parametrize(("action", "power"), [("leith", 3), ("smagorinsky", 2)])
def test_the_effective_constant_is_that_of_the_action(action, power):
    drawing = coefficient_density(arms_of({"smarl": [policy(action=action)]})[0])
    drawing.savefig(io.BytesIO(), dpi=25)
    (second,) = drawing.axes[1].child_axes
    low, high = drawing.axes[1].get_ylim()
    np.testing.assert_allclose([math.copysign(abs(y) ** power, y) for y in second.get_ylim()], [low, high], rtol=1e-6)
    unknown = coefficient_density(Entry("agents", "a", (policy(action="other"),), "red"))
    assert not unknown.axes[1].child_axes


def test_a_band_of_equal_values_is_their_value():
    np.testing.assert_array_equal(band(np.full((4, 2), 3.0)), np.full((3, 2), 3.0))
