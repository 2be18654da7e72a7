"""Figures of the MRI app: what is drawn is what the data say, for every operator."""

import io

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Drawing
from PIL import Image

from apps.mri import figures
from apps.mri.calibration import NOMINAL, coverage, errors_and_spread
from apps.mri.figures import Snapshot, acquisition_gif, acquisition_picture
from apps.mri.figures.appearance import COLOURS, most_telling, ranked
from apps.mri.figures.calibration import binned, calibration
from apps.mri.figures.comparison import budget_curves, error_bar, gains, regret, stops, violins
from apps.mri.figures.layout import ActionLayout
from apps.mri.figures.masks import TILES, draw_scores, masks, waterfall
from apps.mri.figures.reconstruction import panels, typical_and_hardest
from apps.mri.methods import NAMES
from apps.mri.study import Comparison
from core.errors import InputError
from core.stats import Interval, mean_interval

OPERATORS = ("pixels", "columns", "kspace_lines", "kspace_points")
SUBJECTS, RECORDED, SHAPE = 9, 5, (8, 6)


def outcome(operator="kspace_lines", seed=0, *, psnr=20.0, mae=0.1, chosen=3, spread=0.05, seeds=2):
    """What a method might have left behind: dims seed, subject, ..."""
    luck = np.random.default_rng(seed)
    layout = ActionLayout(operator, SHAPE)
    actions = layout.actions
    order = np.stack([luck.permutation(actions - 1)[:chosen] + 1 for _ in range(seeds * SUBJECTS)])
    order = order.reshape(seeds, SUBJECTS, chosen)
    mask = np.zeros((seeds, SUBJECTS, actions), dtype=np.int8)
    np.put_along_axis(mask, order, 1, -1)
    mask[..., 0] = 1  # held from the start
    target = np.random.default_rng(9).random((RECORDED, *SHAPE))  # the same subjects for every method
    image = target + luck.normal(size=(seeds, RECORDED, *SHAPE)) * (spread or 0.1)
    data = {
        "psnr": (("seed", "subject"), psnr + luck.normal(size=(seeds, SUBJECTS))),
        "ssim": (("seed", "subject"), luck.uniform(0.5, 1, (seeds, SUBJECTS))),
        "mae": (("seed", "subject"), mae * luck.uniform(0.8, 1.2, (seeds, SUBJECTS))),
        "actions": (("seed", "subject"), mask.sum(-1)),
        "mask": (("seed", "subject", "line"), mask),
        "acq_order": (("seed", "subject", "acquisition"), order),
        "acq_step": (("seed", "acquisition"), np.tile(3 * np.arange(chosen), (seeds, 1))),
        "line_entropy": (
            ("seed", "subject", "acquisition", "line"),
            luck.uniform(0.1, 1, (seeds, SUBJECTS, chosen, actions)),
        ),
        "residual": (("seed", "subject", "step"), luck.random((seeds, SUBJECTS, 10))),
        "target_image": (("seed", "recorded", "y", "x"), np.broadcast_to(target, image.shape).copy()),
        "image": (("seed", "recorded", "y", "x"), image),
    }
    if spread:
        data["std"] = (("seed", "recorded", "y", "x"), np.full(image.shape, spread))
    subjects = np.arange(40, 40 + SUBJECTS)
    return xr.Dataset(data, {"subject": subjects, "recorded": subjects[:RECORDED]})


def study(operator="kspace_lines"):
    """ADS, three rivals with particles, one reconstruction without."""
    return {
        "ads": outcome(operator, 0, psnr=30, mae=0.05),
        "ads_stop": outcome(operator, 1, psnr=28, mae=0.06),
        "random": outcome(operator, 2, psnr=18, mae=0.2, chosen=0),
        "lowpass": outcome(operator, 3, psnr=25, mae=0.1, chosen=0),
        "fastmri": outcome(operator, 4, psnr=22, mae=0.15, chosen=0),
        "zero_filled": outcome(operator, 5, psnr=15, mae=0.3, chosen=0, spread=0.0),
    }


def judged():
    luck = np.random.default_rng(0)
    best = luck.uniform(0.01, 0.02, SUBJECTS)
    nmse = best + np.array([[0.01], [0.5]])
    data = {"nmse": (("method", "subject"), nmse), "nmse_greedy": ("subject", best), "nmse_best": ("subject", best)}
    return xr.Dataset(data, {"method": ["ads", "random"]})


def png(drawing):
    assert isinstance(drawing, Drawing)
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=40, bbox_inches="tight")
    return np.asarray(Image.open(buffer).convert("RGB"))


def words(drawing):
    return [text.get_text() for text in drawing.findobj(lambda a: hasattr(a, "get_text"))]


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_figure_of_every_operator_is_drawn_with_words_that_do_not_leave_the_page(operator):
    drawn = figures.of_scenario("case", operator, study(operator), [judged()])
    names = [figure.name for figure in drawn]
    kinds = ("reconstructions", "masks", "scores", "calibration", "stop", "regret")
    assert names == [f"case_{kind}" for kind in kinds]
    for figure in drawn:
        assert str(SUBJECTS) in figure.caption or str(RECORDED) in figure.caption
        drawing = figure.draw()
        assert png(drawing).std() > 5  # something is on it
        wide = drawing.get_tightbbox(FigureCanvasAgg(drawing).get_renderer()).width
        assert wide <= 1.02 * drawing.get_figwidth()  # a page that is 900 px wide shows it at its own size
        assert drawing.get_figwidth() <= 9.5


def test_every_method_has_a_look_of_its_own():
    assert set(COLOURS) == set(NAMES)
    assert len({to_rgb(colour) for colour in COLOURS.values()}) == len(NAMES)


def test_columns_are_counted_from_dc_and_from_the_edge():
    lines, columns = ActionLayout("kspace_lines", (4, 32)), ActionLayout("columns", (4, 32))
    assert lines.start + 16 == 0
    assert "DC" in lines.label
    assert columns.start == 0
    assert "DC" not in columns.label
    plane = ActionLayout("pixels", (4, 32)).picture(np.arange(128))
    assert plane[2, 5] == 2 * 32 + 5


def test_shown_subjects_are_chosen_by_rule():
    data = outcome()
    data["psnr"][0] = [12.0, 20.0, 11.0, 14.0, 13.0, 1.0, 99.0, 1.0, 1.0]  # the last four are not recorded
    subjects = typical_and_hardest(data, "random")
    assert list(subjects) == [44, 42]  # median, lowest
    assert subjects[42] == "lowest PSNR of random among the 5 recorded"  # there are lower ones
    assert list(typical_and_hardest(data.isel(recorded=[1]), "ads")) == [41]


@pytest.mark.parametrize("operator", OPERATORS)
def test_captions_say_by_which_rule_subjects_were_chosen_and_among_which(operator):
    captions = {figure.name: figure.caption for figure in figures.of_scenario("case", operator, study(operator))}
    among = "PSNR of ADS among the 5 recorded of 9 subjects (first seed)"
    assert f"median and lowest {among}" in captions["case_reconstructions"]
    planar = ActionLayout(operator, SHAPE).planar
    assert f"{'median' if planar else 'median and lowest'} {among}" in captions["case_scores"]


def test_the_caption_says_so_where_particles_differ_at_measured_pixels():
    found = {"ads": outcome("pixels")}
    said = "particles differ at measured pixels too"
    assert said in figures.of_scenario("case", "pixels", found)[0].caption
    data = found["ads"]
    measured = data["mask"].values[:, :RECORDED].reshape(data["std"].shape) > 0
    data["std"] = data["std"].where(~measured, 0.0)
    assert said not in figures.of_scenario("case", "pixels", found)[0].caption
    lines = {"ads": outcome("kspace_lines")}
    assert said not in figures.of_scenario("case", "kspace_lines", lines)[0].caption


def test_one_pixel_far_out_does_not_leave_the_other_deviations_black():
    found = {"ads": outcome(spread=0.05)}
    found["ads"]["std"][0, 0, 0, 0] = 50.0
    drawing = panels(found, ActionLayout("kspace_lines", SHAPE), ["ads"], {40: "why", 41: "why"})
    spread = [i for i in drawing.axes[0].get_images() if i.get_cmap().name == "magma" and i.get_array().min() == 0.05]
    assert [i.norm.vmax for i in spread] == [pytest.approx(0.05)] * 2


def test_the_most_telling_rivals_are_the_strongest_the_usual_and_one_other_reconstruction():
    found = study()
    assert ranked(found, "kspace_lines")[:3] == ["ads", "ads_stop", "lowpass"]
    assert most_telling(found, "kspace_lines", 4) == ["ads", "lowpass", "fastmri", "zero_filled"]
    assert most_telling(found, "pixels", 2) == ["ads", "lowpass"]  # by MAE, which is better when small
    del found["ads"], found["ads_stop"]
    assert most_telling(found, "kspace_lines", 2)[0] == "random"


def test_panels_show_target_images_errors_and_metrics_of_each_method():
    found = study()
    drawing = panels(found, ActionLayout("kspace_lines", SHAPE), ["ads", "zero_filled"], {42: "why"})
    shown = [np.asarray(image.get_array()) for image in drawing.axes[0].get_images()]
    for method in ("ads", "zero_filled"):
        one = found[method].isel(seed=0).sel(recorded=42, subject=42)
        error = np.abs(one["image"] - one["target_image"]).values
        assert any(s.shape == error.shape and np.array_equal(s, error) for s in shown)
        assert f"{float(one.psnr):.1f} dB, SSIM {float(one.ssim):.3f}" in words(drawing)
    assert sum(s.shape == SHAPE for s in shown) == 1 + 2 * 2 + 1  # target; image and error of both; one has particles
    assert "no particles" in words(drawing)


def test_mask_panels_count_how_often_each_action_is_taken():
    found = study()
    drawing = masks(found, ActionLayout("kspace_lines", SHAPE))
    shown = [axes for axes in drawing.axes if axes.get_images()]
    assert [axes.get_title() for axes in shown] == [NAMES[m] for m in found if m != "zero_filled"]
    for axes, method in zip(shown, found, strict=False):
        mask = found[method]["mask"].values.reshape(-1, SHAPE[1]) > 0
        heights = axes.patches[0].get_data().values - axes.patches[0].get_data().baseline
        np.testing.assert_allclose(heights / 0.6, mask.mean(0))
        strip = ~np.asarray(axes.get_images()[0].get_array(), dtype=bool)
        assert sorted(map(tuple, strip)) == sorted(map(tuple, mask))


@pytest.mark.parametrize("methods", [3, 5, 8])
def test_the_lowest_panel_of_every_column_has_numbers(methods):
    found = {method: outcome(seed=i) for i, method in enumerate(list(COLOURS)[:methods])}
    drawing = masks(found, ActionLayout("kspace_lines", SHAPE))
    drawing.draw_without_rendering()
    shown = [axes for axes in drawing.axes if axes.get_images()]
    numbered = [any(tick.label1.get_visible() for tick in axes.xaxis.get_major_ticks()) for axes in shown]
    assert numbered == [i + 4 >= methods for i in range(methods)]


def test_scores_are_shares_of_the_free_actions_and_marks_are_where_actions_were_taken():
    axes = Drawing().subplots()
    scores = np.array([[9.0, 1, 2, 4, 0, 0], [9.0, 1, 2, 4, 0, 0], [9.0, 8, 5, 9, 2, 0]])
    order, step = np.array([3, 1, 2]), np.array([4, 4, 7])  # two actions of one step, then one
    mask = np.array([1, 1, 1, 1, 0, 0]) > 0
    shown = draw_scores(axes, scores, order, step, mask, ActionLayout("kspace_lines", (2, 6)))
    share = np.ma.filled(shown.get_array().astype(float), np.nan)
    np.testing.assert_allclose(share, [[np.nan, 0.25, 0.5, 1, 0, 0], [np.nan, np.nan, 1, np.nan, 0.4, 0]])
    (marks,) = axes.get_lines()
    assert {(x, y) for x, y in zip(*marks.get_data(), strict=True)} == {(0, 0), (-2, 0), (-1, 1)}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["4", "7"]


def test_a_stopped_subject_has_no_marks_after_its_stop():
    axes = Drawing().subplots()
    mask = np.array([0, 1, 0, 0]) > 0
    draw_scores(axes, np.ones((3, 4)), np.array([1, -1, -1]), np.arange(3), mask, ActionLayout("columns", (2, 4)))
    assert len(axes.get_lines()[0].get_xdata()) == 1


def test_many_steps_of_a_plane_become_a_page_of_some():
    data = outcome("pixels", chosen=40)
    drawing = waterfall(data, ActionLayout("pixels", SHAPE), {40: "why"})
    steps = [word for word in words(drawing) if word.startswith("step ")]
    assert len(steps) == TILES
    assert steps[0] == "step 0"
    assert steps[-1] == f"step {3 * 39}"


def test_gaussian_errors_of_the_stated_width_lie_on_the_ideal_line_and_are_covered_as_stated():
    luck = np.random.default_rng(0)
    std = np.exp(luck.normal(-2, 1, (2, 30, 2000)))
    error = np.abs(luck.normal(size=std.shape)) * std
    predicted, measured = binned(error, std)
    np.testing.assert_allclose(measured, np.sqrt(2 / np.pi) * predicted, rtol=0.04)
    assert np.all(np.diff(predicted) > 0)
    for share in NOMINAL:
        right, half = coverage(error, std, share), coverage(error, std / 2, share)
        assert right.low <= share <= right.high
        assert right.n == 30
        assert half.high < share - 0.1


def test_the_two_nominal_intervals_have_marks_and_lines_of_their_own():
    right = calibration({"ads": outcome()}, ["ads"]).axes[1]
    looks = {}
    for bar, share in zip(right.containers, NOMINAL, strict=True):
        looks[share] = bar.lines[0].get_markerfacecolor()
    assert looks == {0.5: "white", 0.9: COLOURS["ads"]}
    verticals = {line.get_xdata()[0]: line.get_linestyle() for line in right.lines if len(set(line.get_xdata())) == 1}
    assert (verticals[50], verticals[90]) == (":", "--")
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["nominal 50 %", "nominal 90 %"]


def test_pixels_without_spread_are_not_counted():
    data = outcome()
    data["std"][:, :, 0] = 0.0
    data["image"][:, :, 0] += 100.0
    error, std = errors_and_spread(data)
    assert np.isnan(std).mean() == pytest.approx(1 / SHAPE[0])
    assert np.nanmax(error) < 1
    assert coverage(error, std, 0.9).mean == pytest.approx(0.9, abs=0.08)


def test_curves_go_through_the_means_with_their_intervals_and_count_accelerations():
    found = {4: {"ads": outcome(mae=0.2)}, 2: {"ads": outcome(seed=1, mae=0.3)}}
    drawing = budget_curves(found, ActionLayout("kspace_lines", SHAPE), ["ads"])
    axes = drawing.axes[0]
    expected = [mean_interval(found[b]["ads"]["mae"].mean("seed").values, resamples=1000) for b in (2, 4)]
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [[2, expected[0].mean], [4, expected[1].mean]])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    for interval in expected:
        assert np.isclose(band, interval.low).any()
        assert np.isclose(band, interval.high).any()
    assert {"3×", "1.5×"} <= set(words(drawing))


def test_far_subjects_are_dots_and_the_density_is_of_the_others():
    luck = np.random.default_rng(0)
    values = np.concatenate([luck.normal(0.06, 0.01, 197), [0.3, 0.4, 0.5]])
    data = xr.Dataset({"mae": (("seed", "subject"), values[None])})
    axes = violins({8: {"ads": data}}, ActionLayout("pixels", SHAPE), ["ads"]).axes[0]
    density = axes.collections[0].get_paths()[0].vertices[:, 1]
    dots = next(line.get_ydata() for line in axes.lines if line.get_marker() == ".")
    assert set(dots) == set(values[(values < density.min()) | (values > density.max())])
    assert {0.3, 0.4, 0.5} <= set(dots)
    assert len(dots) <= 0.05 * len(values)


def test_a_short_interval_is_seen_over_its_mark():
    axes = Drawing().subplots()
    error_bar(axes, Interval(0.0, -1e-9, 1e-9, 9, 0.95), 0, "ads")
    mark, caps, (bar,) = axes.containers[0]
    assert all(cap.get_markersize() > 2 * mark.get_markersize() for cap in caps)
    assert bar.get_zorder() > mark.get_zorder()


@pytest.mark.parametrize("operator", ["pixels", "kspace_lines"])
def test_a_gain_is_right_of_the_line_where_ads_is_better(operator):
    found = study(operator)
    drawing = gains(found, operator)
    rivals = [m for m in ranked(found, operator) if m != "ads"]
    assert [t.get_text() for t in drawing.axes[0].get_yticklabels()] == [NAMES[m] for m in rivals]
    metric, sign = ("mae", -1) if operator == "pixels" else ("psnr", 1)
    for rival, bar in zip(rivals, drawing.axes[0].containers, strict=True):
        expected = sign * float((found["ads"][metric] - found[rival][metric]).mean())
        assert bar.lines[0].get_xdata()[0] == pytest.approx(expected)
        assert expected > 0


def test_a_rival_that_is_ads_itself_is_called_equal():
    found = {"ads": outcome(), "lowpass": outcome()}
    assert "equal on all" in words(gains(found, "kspace_lines"))


def test_regret_is_the_distance_from_each_subjects_best_mask():
    drawing = regret([judged(), judged()])
    means = [bar.lines[0].get_xdata()[0] for bar in drawing.axes[0].containers]
    np.testing.assert_allclose(means, [0.0, 0.01, 0.5], atol=1e-12)
    names = [t.get_text() for t in drawing.axes[0].get_yticklabels()]
    assert names == ["clairvoyant greedy", "ADS", "random"]


def test_the_stop_histogram_counts_every_subject():
    found = study()
    found["ads_stop"]["actions"][:] = np.arange(SUBJECTS) % 4 + 2
    drawing = stops(found, ActionLayout("kspace_lines", SHAPE))
    assert sum(patch.get_height() for patch in drawing.axes[0].patches) == 2 * SUBJECTS


def scenario(name, budget, **changes):
    images = changes.pop("images", {"kind": "digits", "size": 8})
    return Comparison(name=name, images=images, operator="pixels", budget=budget, methods=("ads", "random"), **changes)


def test_budgets_of_one_problem_share_a_figure_and_others_stand_alone():
    settings = [
        scenario("digits_B8", 8),
        scenario("digits_B16", 16),
        scenario("other_images", 16, images={"kind": "digits", "size": 8, "seed": 5}),
    ]
    found = {s.name: {"ads": outcome("pixels"), "random": outcome("pixels", 1, mae=0.3)} for s in settings}
    drawn = figures.of_budgets({s.name: s for s in settings}, found)
    assert [figure.name for figure in drawn] == ["digits_budgets", "digits_errors", "other_images_gains"]
    for figure in drawn:
        assert str(SUBJECTS) in figure.caption
        assert png(figure.draw()).std() > 5


def test_one_budget_twice_is_no_curve():
    settings = [scenario("first", 8), scenario("second", 8)]
    found = {s.name: {"ads": outcome("pixels"), "random": outcome("pixels", 1)} for s in settings}
    drawn = figures.of_budgets({s.name: s for s in settings}, found)
    assert [figure.name for figure in drawn] == ["first_gains", "second_gains"]


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_acquisition_is_drawn_with_and_without_the_truth(operator):
    known = outcome(operator).isel(seed=0)
    unknown = known.drop_vars(["target_image", "psnr", "ssim", "mae"])
    both = [acquisition_picture(data, operator) for data in (known, unknown)]
    titles = [{axes.get_title() for part in d.subfigs for axes in part.axes} for d in both]
    assert {"target", "|error|", "reconstruction", "particle std"} <= titles[0]
    assert not {"target", "|error|"} & titles[1]
    assert {"reconstruction", "particle std"} <= titles[1]
    assert "PSNR" in both[0].get_suptitle()
    assert "PSNR" not in both[1].get_suptitle()
    for drawing in both:
        assert png(drawing).std() > 5


def parts(drawing):
    """The axes of a picture by their titles, and all of its words."""
    axes = [one for part in drawing.subfigs for one in part.axes]
    return {one.get_title(): one for one in axes}, [text for part in drawing.subfigs for text in words(part)]


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_acquisition_without_choices_says_so_on_a_smaller_page(operator):
    data = outcome(operator, chosen=0).isel(seed=0)
    refused = outcome(operator).isel(seed=0)
    refused["acq_order"][:] = -1
    for one in (data, refused):
        drawing = acquisition_picture(one, operator)
        titles, said = parts(drawing)
        layout = ActionLayout(operator, SHAPE)
        strip = titles[f"nothing was chosen (dark: the initial {layout.noun}s)"]
        assert strip.get_xlabel() == ("" if layout.planar else layout.label)
        assert "score, share of the largest of the step" not in said
        assert drawing.get_figheight() < acquisition_picture(outcome(operator).isel(seed=0), operator).get_figheight()
        png(drawing)


@pytest.mark.parametrize("operator", ["pixels", "kspace_lines"])
@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_the_order_counts_in_whole_numbers(operator, chosen):
    data = outcome(operator, chosen=min(chosen, 5)).isel(seed=0)
    drawing = acquisition_picture(data, operator)
    label = f"order of the {ActionLayout(operator, SHAPE).noun}s (0: initial)"
    bars = [axes for part in drawing.subfigs for axes in part.axes if label in (axes.get_xlabel(), axes.get_ylabel())]
    (bar,) = bars
    ticks = bar.get_xticks() if bar.get_xlabel() else bar.get_yticks()
    assert len(ticks) >= 2
    assert np.all(ticks == np.round(ticks))


@pytest.mark.parametrize("operator", ["pixels", "kspace_lines"])
def test_what_a_policy_chose_before_the_diffusion_has_an_order_and_no_scores_or_step(operator):
    data = outcome(operator).isel(seed=0)
    data["acq_step"][:] = -1
    data["line_entropy"][:] = np.nan
    drawing = acquisition_picture(data, operator)
    titles, said = parts(drawing)
    assert f"order of the {ActionLayout(operator, SHAPE).noun}s (0: initial)" in said
    assert "score, share of the largest of the step" not in said
    assert len(titles["distance from samples\n(lines: acquisitions)"].lines) == 1  # the curve
    png(drawing)
    assert "case_scores" not in {
        f.name for f in figures.of_scenario("case", operator, {"subpo": data.expand_dims("seed")})
    }


@pytest.mark.filterwarnings("error")
def test_a_reconstruction_that_diverged_is_marked():
    data = outcome().isel(seed=0)
    assert "not finite" not in parts(acquisition_picture(data))[1]
    huge = data.assign(image=1e6 * data["image"])
    assert any(word.startswith("up to ") for word in parts(acquisition_picture(huge))[1])
    lost = data.assign(image=data["image"] * np.nan, std=data["std"] * np.inf, residual=data["residual"] * np.nan)
    drawing = acquisition_picture(lost)
    assert parts(drawing)[1].count("not finite") == 4  # image, std, error, residual
    png(drawing)


@pytest.mark.parametrize("operator", ["pixels", "kspace_lines"])
def test_an_animation_has_a_frame_for_each_snapshot_and_is_the_only_file_left(operator, tmp_path):
    actions = ActionLayout(operator, SHAPE).actions
    luck = np.random.default_rng(0)
    moments = [
        Snapshot(luck.random(SHAPE), luck.random(SHAPE), np.arange(actions) < taken) for taken in (1, 3, actions)
    ]
    path = tmp_path / "scan.tmp"  # whatever its ending
    acquisition_gif(path, moments, operator, per_second=5)
    assert [file.name for file in tmp_path.iterdir()] == ["scan.tmp"]
    with Image.open(path) as animation:
        assert animation.format == "GIF"
        assert animation.n_frames == len(moments)
        assert animation.info["duration"] == 200
        frames = []
        for i in range(animation.n_frames):
            animation.seek(i)
            frames.append(np.asarray(animation.convert("L"), dtype=float))
    assert np.abs(frames[0] - frames[2]).mean() > 1


def test_no_snapshots_are_refused(tmp_path):
    with pytest.raises(InputError, match="no snapshots"):
        acquisition_gif(tmp_path / "scan.gif", [])
    assert not list(tmp_path.iterdir())
