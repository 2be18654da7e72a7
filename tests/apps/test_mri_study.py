"""The MRI study from its YAML to its claims: what is kept, resumed, shared out, averaged, left out and refused."""

import json
import math

import numpy as np
import pytest
import torch
import xarray as xr

from apps.mri import figures, runs
from apps.mri.calibration import coverage, errors_and_spread
from apps.mri.claims import QUICK, Evidence, decide
from apps.mri.images import Images
from apps.mri.methods import display
from apps.mri.recording import write_part
from apps.mri.runs import Region
from apps.mri.study import MRIStudy, StopRule
from apps.mri.table import regret_rows, rows_of
from core.configs import configs
from core.errors import InputError
from core.stats import holm, paired_difference
from core.study import Context, StudyError
from simulators.mri.quality import psnr

pytest.importorskip("sklearn")

TINY = """
study: tiny
seeds: 1
scenarios:
  - &digits
    name: pixels_B6
    images: {kind: digits, size: 8, train: 200}
    operator: pixels
    budget: 6
    prior: {kind: gmm, components: 4, rank: 4}
    sampling: {steps: 10, particles: 4, omega: 3.0, window: [0.0, 0.8], sigma: 0.5}
    subjects: {first: 40, count: 6, record: 4}
    reference_mask: random
    methods: [ads, random, data_variance]
  - {<<: *digits, name: pixels_B10, budget: 10}
  - name: lines_adaptivity
    images: {kind: adaptivity, size: 32, train: 120}
    budget: 4
    initial: 1
    prior: {kind: gmm, components: 4, rank: 4}
    sampling: {steps: 10, particles: 4, window: [0.02, 0.6], hard_consistency: true}
    subjects: {count: 8, record: 3}
    search_images: 16
    methods: [ads, greedy_fixed, zero_filled]
  - name: lines_fastmri
    images: {kind: fastmri, data: /nowhere/fastmri}
    budget: 32
    methods: [ads, fastmri]
claims:
  - ads_beats_random_pixels
  - ads_beats_data_variance_pixels
  - ads_beats_fastmri_lines
  - ads_beats_every_fixed_mask_adaptivity
  - ads_gains_published_ssim
"""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """What is drawn is tested with the figures."""
    for name in ("of_scenario", "of_budgets"):
        monkeypatch.setattr(figures, name, lambda *_, **__: [])


@pytest.fixture
def study(tmp_path):
    """The tiny study with overrides; ``only`` keeps one scenario."""

    def load(*overrides, only=None):
        path = tmp_path / "tiny.yaml"
        path.write_text(TINY)
        found = MRIStudy.load(path, overrides)
        if only is None:
            return found
        return found.model_copy(update={"scenarios": tuple(s for s in found.scenarios if s.name == only)})

    return load


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Where single runs find the training images and the prior, made once."""
    return tmp_path_factory.mktemp("products")


@pytest.fixture
def place(products, tmp_path):
    """The surroundings of a run by name; the same name, the same checkpoint."""

    def named(name):
        folder = tmp_path / name
        (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
        return Context(folder, folder / "checkpoint", torch.device("cpu"), products, folder / "log.jsonl")

    return named


def merged(out, scenario):
    return xr.load_dataset(out / "results.nc", group=scenario, engine="h5netcdf")


def means(summary, scenario, metric):
    return {r.method: r.mean for r in summary.table if (r.scenario, r.metric) == (scenario, metric)}


# ---- a whole study


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny study, run once in this process: its folder and its summary."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("of_scenario", "of_budgets"):
            patch.setattr(figures, name, lambda *_, **__: [])
        return folder / "out", MRIStudy.load(folder / "tiny.yaml").run(folder / "out", workers=0, quiet=True)


def test_a_study_runs_and_its_claims_are_decided(whole):
    out, summary = whole
    said = json.loads((out / "summary.json").read_text())
    verdicts = {c["id"]: c for c in said["claims"]}
    for name in ("ads_beats_random_pixels", "ads_beats_data_variance_pixels"):
        assert verdicts[name]["holds"] in (True, False)
        assert verdicts[name]["n"] == 6
        assert verdicts[name]["holds"] == (verdicts[name]["low"] > 0)
    # Scenarios and methods that are not in this study leave their claims open.
    assert verdicts["ads_beats_fastmri_lines"]["holds"] is None
    assert "does not have" in verdicts["ads_beats_fastmri_lines"]["reason"]
    assert verdicts["ads_beats_every_fixed_mask_adaptivity"]["holds"] is None
    assert not summary.all_hold
    assert (out / "report.html").stat().st_size > 1000
    for row in summary.table:
        # Of subjects whose images are kept there are fewer.
        assert row.n in ((4, 3) if row.metric.startswith("coverage") else (6, 8))
        assert np.isfinite(row.mean)


def test_the_results_have_named_dims_and_keep_what_was_asked_for(whole):
    data = merged(whole[0], "lines_adaptivity")
    assert data.method.values.tolist() == ["ads", "greedy_fixed", "zero_filled"]
    assert data.budget.values.tolist() == [4]
    assert data.subject.values.tolist() == list(range(8))
    assert data.recorded.values.tolist() == [0, 1, 2]
    assert data.part.values.tolist() == ["real", "imaginary"]
    expected = {
        "psnr": {"method", "budget", "seed", "subject"},
        "mask": {"method", "budget", "seed", "subject", "line"},
        "acq_order": {"method", "budget", "seed", "subject", "acquisition"},
        "line_entropy": {"method", "budget", "seed", "subject", "acquisition", "line"},
        "residual": {"method", "budget", "seed", "subject", "step"},
        "image": {"method", "budget", "seed", "recorded", "y", "x"},
        "recon": {"method", "budget", "seed", "recorded", "part", "y", "x"},
        "target": {"budget", "recorded", "part", "y", "x"},
    }
    for name, dims in expected.items():
        assert set(data[name].dims) == dims, name
        assert data[name].attrs["long_name"]
        assert data[name].attrs["units"]
    ads = data.sel({"method": "ads", "budget": 4}).isel(seed=0)
    assert (ads.mask.sum("line") == 4).all()
    assert (ads.mask.isel(line=16) == 1).all()
    assert all(ads.mask.values[i, ads.acq_order.values[i]].all() for i in range(8))
    assert (data.acq_order.sel({"method": "greedy_fixed"}) == -1).all()  # it took its lines at once
    assert np.isnan(data.line_entropy.sel({"method": "zero_filled"})).all()
    assert float(ads["std"].mean()) > 0
    targets = Images(kind="adaptivity", size=32).test(0, 3).numpy()
    np.testing.assert_array_equal(data.target.isel(budget=0), targets)
    # Each figure of merit follows from the images that are kept.
    shown = torch.tensor(ads.image.values)
    np.testing.assert_allclose(ads.psnr[:3], psnr(display(torch.tensor(targets)), shown), rtol=1e-5)


def test_the_table_is_what_the_results_say(whole):
    out, summary = whole
    data = merged(out, "pixels_B10").isel(budget=0)
    for metric in ("mae", "psnr", "ssim", "nmse"):
        for method, found in means(summary, "pixels_B10", metric.upper()).items():
            assert found == pytest.approx(float(data[metric].sel({"method": method}).mean()), rel=1e-5)
    gain = data.mae.sel({"method": "random"}) - data.mae.sel({"method": "ads"})
    assert means(summary, "pixels_B10", "gain of ADS in MAE")["random"] == pytest.approx(float(gain.mean()), rel=1e-4)
    share = means(summary, "pixels_B10", "ADS is better, ties left out")["random"]
    assert share == pytest.approx(float((gain > 0).mean()))


def test_a_report_of_stored_results_says_the_same(whole):
    out, summary = whole
    again = MRIStudy.load(out / "config.yaml").report(out)
    assert again.table == summary.table
    assert again.claims == summary.claims


def test_every_method_meets_the_same_subjects_and_the_prior_is_fitted_once(whole):
    out, _ = whole
    labels = [json.loads(p.read_text())["label"] for p in out.glob("products/*/product.json")]
    assert sorted(labels) == sorted(
        [
            *("digits training images", "digits gmm prior", "digits variance of pixels"),
            *("adaptivity training images", "adaptivity gmm prior", "adaptivity variance of kspace_lines"),
        ]
    )
    data = merged(out, "lines_adaptivity").isel(budget=0, seed=0)
    assert (data.target_image == data.target_image.sel({"method": "ads"})).all()
    greedy = data.mask.sel({"method": "greedy_fixed"})
    assert (greedy == greedy[0]).all()


# ---- shards, batches, seeds, resumption


def test_batches_and_shards_of_subjects_give_the_same_numbers(study, whole, tmp_path):
    expected = merged(whole[0], "pixels_B6").isel(budget=0).sel({"method": ["ads"]})
    parts = ("scenarios.0.subjects.at_once=3", "scenarios.0.subjects.per_run=4", "scenarios.0.methods=[ads]")
    shared = study(*parts, only="pixels_B6")
    assert [[r.count for r in shared.shards(shared.scenarios[0], "ads")[0]], len(shared.runs())] == [[4, 2], 2]
    shared.run(tmp_path / "out", workers=0, quiet=True)
    found = merged(tmp_path / "out", "pixels_B6").isel(budget=0)
    assert found.subject.values.tolist() == expected.subject.values.tolist() == list(range(40, 46))
    for name in ("mask", "acq_order"):
        np.testing.assert_array_equal(found[name], expected[name])
    for name in ("psnr", "ssim", "mae", "nmse", "residual"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)
    # Four of each shard are recorded; of the second there are two.
    assert found.recorded.values.tolist() == list(range(40, 46))


@pytest.mark.parametrize("method", ["ads", "zero_filled"])
def test_a_run_that_was_killed_goes_on_after_its_last_batch(study, place, monkeypatch, method):
    """Two batches, of which the second keeps no images."""
    run = one(study, method, "scenarios.0.subjects.at_once=3", "scenarios.0.subjects.record=2")
    uninterrupted = run.execute({}, place("whole"))
    assert uninterrupted.subject.values.tolist() == list(range(40, 46))
    assert uninterrupted.recorded.values.tolist() == [40, 41]

    written = []

    def killed(path, data):
        write_part(path, data)
        written.append(path.name)
        if len(written) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        run.execute({}, place("killed"))
    resumed = run.execute({}, place("killed"))
    assert written == ["part_00000.nc", "part_00001.nc"]
    xr.testing.assert_identical(resumed.drop_vars("seconds"), uninterrupted.drop_vars("seconds"))


def test_a_study_with_another_config_is_not_gone_on_with(study, whole):
    with pytest.raises(InputError, match="holds study tiny with config hash"):
        study("scenarios.0.sampling.sigma=0.6").run(whole[0], workers=0, quiet=True)


def test_a_subject_counts_once_with_its_mean_over_the_seeds(study, tmp_path):
    summary = study("seeds=2", "scenarios.0.methods=[random]", only="pixels_B6").run(
        tmp_path / "out", workers=0, quiet=True
    )
    data = merged(tmp_path / "out", "pixels_B6").isel(budget=0)
    assert data.seed.values.tolist() == [0, 1]
    assert not np.array_equal(data.mask.sel(seed=0), data.mask.sel(seed=1))
    assert {row.n for row in summary.table if not row.metric.startswith("coverage")} == {6}
    by_subject = data.mae.mean("seed")
    row = next(r for r in summary.table if r.metric == "MAE")
    assert row.mean == pytest.approx(float(by_subject.mean()), rel=1e-5)
    low, high = float(by_subject.min()), float(by_subject.max())
    assert low <= row.low < row.mean < row.high <= high


# ---- what single methods do


def one(study, method, *overrides, **fields):
    """The run of one method on six digits, six pixels of each."""
    scenario = study(*overrides, only="pixels_B6").scenarios[0].model_copy(update={"methods": (method,), **fields})
    return MRIStudy(study="one", scenarios=(scenario,)).shards(scenario, method)[0][0]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ads", {"score": "kl", "sampler": "dps"}),
        ("greedy_variance", {"score": "variance", "sampler": "dps"}),
        ("reference_positive", {"score": "reference_positive", "sampler": "dps"}),
        ("noise_aware", {"score": "noise_aware", "sampler": "dps"}),
        ("ads_exact", {"score": "kl", "sampler": "exact"}),
    ],
)
def test_an_adaptive_method_is_ads_with_another_score_or_sampler(study, method, settings):
    found = one(study, method)._settings()
    assert found.model_dump() == study().scenarios[0].sampling.model_dump() | settings


def test_a_region_of_interest_gets_the_samples_and_is_judged_by_itself(study, place):
    region = Region(rows=(2, 6), columns=(3, 7), outside=0.0)
    found = {m: one(study, m, region=region).execute({}, place(m)) for m in ("ads", "ads_roi")}
    inside = (region.weights((1, 8, 8)) == 1).numpy().ravel()
    assert inside.sum() == 16
    assert found["ads_roi"].mask.values[:, inside].sum() == 6 * 6
    assert found["ads"].mask.values[:, inside].sum() < 6 * 6
    truth, image = (found["ads"][n].values.reshape(4, 64)[:, inside] for n in ("target_image", "image"))
    expected = ((truth - image) ** 2).sum(1) / (truth**2).sum(1)
    np.testing.assert_allclose(found["ads"].nmse_region[:4], expected, rtol=1e-4)
    with pytest.raises(InputError, match=r"region\.rows: 2 to 9, must be 0 <= first < end <= 8"):
        Region(rows=(2, 9), columns=(0, 8)).weights((1, 8, 8))
    with pytest.raises(InputError, match=r"region\.columns: 3 to 3"):
        Region(rows=(0, 8), columns=(3, 3)).weights((1, 8, 8))


def test_the_stop_rule_stops_some_subjects_before_the_budget_and_none_at_once(study, place):
    """Early in the diffusion all particles say the same, which is no knowledge: calibration knows that."""
    run = one(study, "ads_stop", "scenarios.0.budget=16", stop=StopRule(nmse=0.2, images=24))
    assert run.calibrated.sampling == run.sampling
    calibrated = run.calibrated.execute({}, place("calibrate"))
    assert calibrated.predicted.shape == calibrated.true.shape == (24, 10)
    expected = calibrated.true.mean("subject") / calibrated.predicted.mean("subject")
    np.testing.assert_allclose(calibrated.ratio, expected, rtol=1e-4)
    assert calibrated.ratio[0] > 100
    found = run.execute({"calibrated": calibrated}, place("run"))
    taken = found.actions.values
    assert (found.mask.sum("line") == taken).all()
    assert ((found.acq_order >= 0).sum("acquisition") == taken).all()
    assert 2 < taken.mean() < 16
    never = run.model_copy(update={"target": 1e-6}).execute({"calibrated": calibrated}, place("never"))
    assert never.actions.values.tolist() == [16] * 6


def test_a_noisy_scanner_has_the_noise_that_was_asked_for(study, place):
    clean, noisy = (
        one(study, "zero_filled", "scenarios.0.budget=64", snr=snr).execute({}, place(f"{snr}")) for snr in (None, 10)
    )
    assert float(clean.nmse.max()) < 1e-12
    digits = Images(kind="digits", size=8).test(40, 6)
    variance = digits.square().mean((1, 2, 3)) / 10  # 10 dB of power, and what is shown is half as large
    error = ((noisy.target_image - noisy.image) ** 2).mean(("x", "y")) * 4
    assert float((error / variance[:4].numpy()).mean()) == pytest.approx(1, abs=0.3)
    np.testing.assert_array_equal(noisy.target_image, clean.target_image)


def test_regret_is_measured_against_the_best_of_all_masks(study, place):
    overrides = ("scenarios.0.subjects.count=3", "scenarios.0.budget=2", "scenarios.0.methods=[ads, random]")
    scenario = study(*overrides, only="pixels_B6").scenarios[0].model_copy(update={"regret": True})
    own = MRIStudy(study="one", scenarios=(scenario,))
    (run,) = own.regrets(scenario)
    assert run in own.runs()
    done = {f"compared.{i}": r.execute({}, place(r.method)) for i, r in enumerate(run.compared)}
    data, slack = run.execute(done, place("regret")), 1e-6
    assert data.nmse.dims == ("method", "subject")
    assert data.method.values.tolist() == ["ads", "random"]
    assert (data.nmse_best > 0).all()
    assert (data.nmse_best <= data.nmse_greedy + slack).all()
    assert (data.nmse_best <= data.nmse + slack).all()
    regrets = {row.method: row for row in regret_rows(scenario, [data])}
    assert list(regrets) == ["ads", "random", "clairvoyant greedy"]
    distance = data.nmse.sel({"method": "random"}) - data.nmse_best
    assert regrets["random"].mean == pytest.approx(float(distance.mean()), rel=1e-4)
    assert regrets["random"].n == 3
    assert 0 <= regrets["clairvoyant greedy"].mean <= regrets["random"].mean


def test_more_masks_than_can_be_tried_are_refused(study, place):
    scenario = study("scenarios.0.subjects.count=2", "scenarios.0.methods=[random]", only="pixels_B6").scenarios[0]
    (run,) = MRIStudy(study="one", scenarios=(scenario,)).regrets(scenario)
    done = {"compared.0": run.compared[0].execute({}, place("random"))}
    with pytest.raises(InputError, match="74974368 masks of 6 actions, at most 20000"):
        run.execute(done, place("regret"))


# ---- what is not there, and what is refused


def test_absent_data_are_skipped_and_leave_their_claims_open(whole):
    out, summary = whole
    verdict = next(c for c in summary.claims if c.id == "ads_gains_published_ssim")
    assert verdict.holds is None
    assert verdict.reason == "fastmri: /nowhere/fastmri does not exist"
    assert "lines_fastmri was left out: fastmri: /nowhere/fastmri does not exist." in (out / "report.html").read_text()
    assert "lines_fastmri" not in xr.open_datatree(out / "results.nc", engine="h5netcdf").children


def test_no_images_at_all_are_refused_with_a_way_out(study, monkeypatch):
    monkeypatch.delenv("SZILARD_DATA", raising=False)
    found = study("scenarios.0.images={kind: mnist}", only="pixels_B6")
    with pytest.raises(InputError, match=r"pixels_B6: mnist: no folder given.*--set smoke=true") as refusal:
        found.runs()
    assert "\n" not in str(refusal.value)
    assert found.model_copy(update={"smoke": True}).runs()
    monkeypatch.setenv("SZILARD_DATA", "/nowhere")
    with pytest.raises(InputError, match="mnist: /nowhere/mnist does not exist"):
        found.runs()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("scenarios.2.initial=5", "lines_adaptivity: budget 4 is below the 5 initial actions"),
        ("scenarios.0.initial=1", "pixels have no centre"),
        ("scenarios.0.budget=0", "greater than or equal to 1"),
        ("scenarios.0.sampling.sigma=0", "greater than 0"),
        ("scenarios.0.sampling.particles=1", "one particle has no entropy"),
        ("scenarios.0.sampling.score=entropy", "'kl', 'bhattacharyya', 'reference_positive'"),
        ("scenarios.0.reference_mask=magic", "'random', 'equispaced', 'uniform', 'fastmri'"),
        ("scenarios.0.methods=[ads, vds]", "vds need k-space: pixels have no centre"),
        ("scenarios.0.sampling.colour=red", "unknown key; known here: sampler"),
        ("scenarios.0.methods=[ads, best]", "'ads'"),
        ("scenarios.0.methods=[ads, ads]", "stands there twice"),
        ("scenarios.0.methods=[ads_stop]", "method ads_stop needs the key stop"),
        ("scenarios.0.methods=[ads_roi]", "method ads_roi needs the key region"),
        ("scenarios.0.methods=[loupe]", "method loupe needs the key loupe"),
        ("scenarios.0.methods=[loupe_unet]", "method loupe_unet needs the key loupe"),
        ("scenarios.0.methods=[pg]", "method pg needs the key policy"),
        ("scenarios.2.prior={kind: unet}", "greedy_fixed.* need a mixture: give the key search"),
        ("scenarios.0.coils=4", "coils: 4 need kspace_lines and at least 16 initial lines"),
        ("scenarios.1.name=pixels_B6", "two have the same name"),
        ("scenarios.0.name=pixels-6", "pattern"),
        ("scenarios.0.subjects.count=1", "greater than or equal to 2"),
        ("claims=[ads_wins]", "ads_beats_random_pixels"),
        ("seeds=0", "greater than or equal to 1"),
        ("scenarios.0.budget=65", "budget 65, must be at most the 64 actions"),
        ("scenarios.0.operator=kspace_lines", "k-space needs two channels"),
        ("scenarios.0.sampling.window=[0.5, 0.5]", "must be 0 <= from < to <= 1"),
    ],
)
def test_an_impossible_config_is_refused_in_one_line(study, override, said):
    with pytest.raises(InputError, match=said) as refusal:
        study(override)
    assert "\n" not in str(refusal.value)
    assert "tiny.yaml" in str(refusal.value) or override.split("=")[0] in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("scenarios.0.subjects.first=295", "subjects: 295 to 300, but there are 297 test images"),
        ("scenarios.0.prior.components=201", "components: 201, must be between 1 and the number of images, 200"),
    ],
)
def test_what_only_the_data_can_tell_fails_its_runs_in_one_line_each(study, tmp_path, override, said):
    own = study(override, "scenarios.0.methods=[zero_filled, ads]", only="pixels_B6")
    with pytest.raises(StudyError) as failure:
        own.run(tmp_path / "out", workers=0, quiet=True)
    first, *rest = str(failure.value).splitlines()
    failed = [line for line in rest if said in line]
    assert first == f"{len(rest)} of 2 runs failed"
    assert len(failed) == len(rest)


def test_a_claim_over_unequal_subjects_is_not_decided():
    metrics = {("pixels_B8", m): {"mae": np.ones(4)} for m in ("ads", "data_variance")}
    metrics |= {("pixels_B9", m): {"mae": np.ones(6)} for m in ("ads", "data_variance")}
    (claim,) = decide(Evidence(metrics, {}), ("ads_beats_data_variance_pixels",))
    assert claim.holds is None
    assert "the same subjects in every scenario" in claim.reason


def test_a_claim_over_other_subjects_is_not_decided():
    metrics = {(f"pixels_B{b}", m): {"mae": np.ones(4)} for b in (8, 9) for m in ("ads", "data_variance")}
    subjects = {"pixels_B8": (40, 4), "pixels_B9": (44, 4)}
    (claim,) = decide(Evidence(metrics, {}, subjects), ("ads_beats_data_variance_pixels",))
    assert claim.holds is None


def test_p_values_are_adjusted_for_all_rivals_and_ties_are_left_out():
    ours, luck = np.linspace(20, 30, 12), np.random.default_rng(0)
    rivals = {
        "random": ours - 1 + luck.normal(0, 2, 12),
        "vds": ours - 0.5 + luck.normal(0, 2, 12),
        "lowpass": ours.copy(),
    }
    rivals["lowpass"][:3] -= 1
    scenario = MRIStudy.load("quick").scenarios[-1]
    rows = rows_of(scenario, {"ads": {"psnr": ours}} | {name: {"psnr": theirs} for name, theirs in rivals.items()})
    found = {(row.method, row.metric): row for row in rows}
    plain = [paired_difference(ours, theirs, resamples=10_000).p for theirs in rivals.values()]
    adjusted = [found[name, "p of the gain (Holm)"].mean for name in rivals]
    assert adjusted == pytest.approx(list(holm(plain)))
    assert all(a >= p for a, p in zip(adjusted, plain, strict=True))
    assert max(adjusted) > max(plain)
    share = found["lowpass", "ADS is better, ties left out"]
    assert (share.mean, share.n) == (1.0, 3)


def test_images_that_are_found_exactly_and_all_their_particles_are_kept(study, tmp_path):
    """All pixels, put into the particles: no error is left, which must not be the end of the report."""
    options = (
        "scenarios.0.budget=64",
        "scenarios.0.sampling.hard_consistency=true",
        "scenarios.0.subjects.particles=true",
    )
    found = study(*options, only="pixels_B6")
    found.run(tmp_path / "out", workers=0, quiet=True)
    data = merged(tmp_path / "out", found.scenarios[0].name).sel({"method": "ads"})
    assert float(data.psnr.min()) > 130
    assert data.particles.sizes["particle"] == 4
    np.testing.assert_allclose(data.particles.mean("particle"), data.recon, atol=1e-6)


SMOKE = [name for name, _ in configs("mri") if name.startswith("paper")]


@pytest.mark.parametrize("config", SMOKE)
def test_the_papers_configs_are_whole_and_have_a_smoke_mode(config, monkeypatch):
    """That it runs is a slow test; here, that nothing but images, steps and training is less than published."""
    monkeypatch.delenv("SZILARD_DATA", raising=False)
    published = MRIStudy.load(config)
    assert published.compared == []
    smoke = MRIStudy.load(config, ["smoke=true"])
    assert smoke.runs()
    for ours, theirs in zip(smoke.compared, published.scenarios, strict=True):
        assert ours.images.generated
        assert ours.images.training().shape[1:] == ours.images.test(0, 1).shape[1:]
        assert ours.sampling.steps == 20
        kept = ("name", "operator", "budget", "initial", "methods", "center_fraction")
        assert all(getattr(ours, name) == getattr(theirs, name) for name in kept)
        assert ours.prior.widths == theirs.prior.widths


@pytest.mark.slow
@pytest.mark.parametrize("config", SMOKE)
def test_the_papers_configs_run_in_smoke_mode(config, tmp_path):
    summary = MRIStudy.load(config, ["smoke=true"]).run(tmp_path / "out", quiet=True)
    assert all(claim.holds is None for claim in summary.claims)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_coverage_is_nominal_where_the_spread_is_that_of_the_errors(scale):
    g = np.random.default_rng(0)
    spread = g.uniform(0.5, 2.0, (1, 8, 40, 40))
    dims = ("seed", "recorded", "y", "x")
    errors = spread * g.standard_normal(spread.shape)
    data = xr.Dataset({"image": (dims, errors), "target_image": (dims, 0 * errors), "std": (dims, scale * spread)})
    # What was measured has neither spread nor error, and is left out.
    data = data.where(g.random(spread.shape) < 0.7, 0.0)
    for nominal, half in ((0.5, 0.6745), (0.9, 1.6449)):
        found = coverage(*errors_and_spread(data), nominal)
        assert found.n == 8
        assert found.mean == pytest.approx(math.erf(scale * half / math.sqrt(2)), abs=0.02)
        assert found.low < found.mean < found.high


# ---- claims on made-up numbers

EVERY = (*QUICK, "ads_gains_published_ssim", "ads_reaches_published_ssim")
SCENARIOS = ("pixels_B8", "pixels_B16", "lines_atlas", "lines_adaptivity", "lines_fastmri")
RIVALS = ("random", "uniform", "fastmri", "vds", "lowpass", "data_variance", "data_variance_top", "greedy_fixed")
N = 60


def spread(seed):
    return 0.01 * np.random.default_rng(seed).standard_normal(N)


def evidence(gains=None, ssim=0.9126):
    """ADS ahead of every rival by 0.1 in each metric, or by what ``gains`` has for a rival or (scenario, rival)."""
    metrics, gains = {}, gains or {}
    for s in SCENARIOS:
        ours = metrics[s, "ads"] = {m: ssim + spread(100) for m in ("psnr", "ssim", "mae")}
        for k, rival in enumerate(RIVALS):
            gain = gains.get((s, rival), gains.get(rival, 0.1)) + spread(k) - spread(k).mean()
            metrics[s, rival] = {m: ours[m] + (gain if m == "mae" else -gain) for m in ours}
    return Evidence(metrics, {})


def verdicts(found, claims=EVERY):
    return {c.id: c for c in decide(found, claims)}


def test_claims_hold_where_ads_is_better():
    found = verdicts(evidence())
    assert {claim.holds for claim in found.values()} == {True}
    for claim in found.values():
        assert 0 < claim.low < claim.difference < claim.high
        assert claim.n == N
        assert "98 %" in claim.test


@pytest.mark.parametrize("gain", [0.0, -0.1])
@pytest.mark.parametrize(
    ("rival", "broken"),
    [
        ("random", {"ads_beats_random_pixels", "ads_beats_fastmri_lines", "ads_beats_every_fixed_mask_adaptivity"}),
        ("data_variance", {"ads_beats_data_variance_pixels", "ads_beats_every_fixed_mask_adaptivity"}),
        ("vds", {"ads_beats_vds_lines_ssim", "ads_beats_every_fixed_mask_adaptivity"}),
        ("greedy_fixed", {"ads_beats_every_fixed_mask_adaptivity"}),
    ],
)
def test_a_tie_or_a_loss_breaks_the_claims_about_that_rival(rival, broken, gain):
    assert {name for name, claim in verdicts(evidence({rival: gain}), QUICK).items() if not claim.holds} == broken


def test_one_budget_is_enough_to_break_every_budget_but_not_the_mean():
    one_bad = {("pixels_B8", rival): -0.02 for rival in ("random", "data_variance")}
    found = verdicts(evidence(one_bad), QUICK[:2])
    every, mean = found["ads_beats_random_pixels"], found["ads_beats_data_variance_pixels"]
    assert every.holds is False
    assert every.reason == "least certain of 2 comparisons: MAE, pixels_B8"
    assert every.difference == pytest.approx(-0.02)
    assert mean.holds is True
    assert mean.difference == pytest.approx(0.04)


@pytest.mark.parametrize(("ssim", "holds"), [(0.9126, True), (0.92, True), (0.90, True), (0.89, False), (0.935, False)])
def test_the_published_quality_is_met_from_both_sides(ssim, holds):
    assert verdicts(evidence(ssim=ssim))["ads_reaches_published_ssim"].holds is holds


@pytest.mark.parametrize(("gain", "holds"), [(0.008, False), (0.02, True)])
def test_the_published_gain_has_its_margin(gain, holds):
    found = verdicts(evidence({("lines_fastmri", "fastmri"): gain}))["ads_gains_published_ssim"]
    assert found.holds is holds
    assert found.difference == pytest.approx(gain - 0.008)


def test_a_claim_about_images_that_are_absent_says_why():
    absent = {"pixels_B10": "mnist: none", "lines_fastmri": "fastmri: none"}
    reasons = {claim.id: (claim.holds, claim.reason) for claim in decide(Evidence({}, absent), EVERY)}
    assert {holds for holds, _ in reasons.values()} == {None}
    assert reasons["ads_beats_random_pixels"][1] == reasons["ads_beats_data_variance_pixels"][1] == "mnist: none"
    assert reasons["ads_gains_published_ssim"][1] == reasons["ads_reaches_published_ssim"][1] == "fastmri: none"
    assert "does not have" in reasons["ads_beats_vds_lines_ssim"][1]
