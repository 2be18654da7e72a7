"""The verbs of ``szilard mri`` as a user types them, and one clear line for every mistake."""

import json
import os
import sys
from functools import partialmethod
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file

from apps.cli import main
from apps.mri import cli, figures, scan_output
from apps.mri.study import MRIStudy
from core.diffusion import training
from core.diffusion.loading import load_prior
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.unet import NetworkPrior
from simulators.mri.atlas import Atlas
from simulators.mri.coils import coil_maps
from simulators.mri.digits import Digits
from simulators.mri.operators import fft2c, to_complex
from simulators.mri.readers import kspace_to_cfl, read_mask_cfl, read_mask_csv, write_cfl
from tests.apps.mri_cases import mixture

pytest.importorskip("sklearn")
nibabel = pytest.importorskip("nibabel")

SIZE = 16
ATLAS = ("train-prior", "atlas", "--count", 300, "--size", SIZE, "--components", 4, "--rank", 8)
QUICK = ("--steps", 10, "--particles", 4)
HEADER = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace><matrixSize><x>16</x><y>16</y><z>1</z>'
    "</matrixSize></encodedSpace><reconSpace><matrixSize><x>16</x><y>16</y><z>1</z></matrixSize></reconSpace>"
    "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{1}</maximum><center>{0}</center>"
    "</kspace_encoding_step_1></encodingLimits></encoding></ismrmrdHeader>"
)


def call(*arguments):
    """Run the command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["szilard", "mri", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return end.code or 0
        return 0


@pytest.fixture
def szilard(capsys):
    """Run ``szilard mri``; exit code, stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = call(*arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(autouse=True)
def blank_pictures(monkeypatch):
    """What is drawn is tested with the figures."""
    monkeypatch.setattr(scan_output, "acquisition_picture", lambda *_: Figure(figsize=(0.1, 0.1)))


@pytest.fixture(scope="session")
def priors(tmp_path_factory):
    """Priors as train-prior writes them: complex images, real images, and a network; and a larger one."""
    folder = tmp_path_factory.mktemp("priors")
    assert call(*ATLAS, "--out", folder / "atlas") == 0
    assert (
        call("train-prior", "digits", "--count", 300, "--components", 4, "--rank", 4, "--out", folder / "digits") == 0
    )
    unet = ("--kind", "unet", "--widths", "4,8", "--depth", 1, "--steps", 3)
    assert call(*ATLAS, "--out", folder / "unet", *unet) == 0
    mixture((2, 32, 32)).save(folder / "large")
    return folder


@pytest.fixture(scope="session")
def subject():
    """(16, 16) a complex image that no prior was trained on."""
    return to_complex(Atlas(SIZE).sample(1, 1))[0]


@pytest.fixture
def write(tmp_path, subject):
    """Write the subject, or changed k-space of it, in one of the formats; the arguments that name it."""

    def fastmri(kspace, limits=(8, 15)):
        path = tmp_path / "file1.h5"
        with h5py.File(path, "w") as file:
            file["kspace"] = kspace[None]
            file["ismrmrd_header"] = HEADER.format(*limits)
            file.attrs.update(acquisition="CORPD_FBK", patient_id="jane")
        return [path]

    def named(name, kspace=None, **more):
        if kspace is None:
            kspace = fft2c(subject).numpy()
        if name == "fastmri":
            return fastmri(kspace, **more)
        path = tmp_path / {"npz": "a.npz", "npy": "a.npy", "image": "b.npy", "nifti": "c.nii.gz", "cfl": "d"}[name]
        if name == "cfl":
            write_cfl(path, kspace_to_cfl(torch.from_numpy(kspace)[None, None]))
        elif name == "nifti":
            nibabel.save(nibabel.Nifti1Image(subject.numpy(), np.eye(4)), path)
        elif name == "npz":
            np.savez(path, kspace=kspace, mask=kspace.any(0))
        else:
            np.save(path, subject.numpy() if name == "image" else kspace)
        return [path, "--kind", "image" if name in ("image", "nifti") else "kspace"]

    return named


@pytest.fixture
def acquire(szilard, priors, tmp_path):
    """Scan a file with a prior; the result and what was said."""

    def scan(file, *options, prior="atlas", out="scan"):
        folder = tmp_path / out
        settings = () if "--steps" in options else QUICK
        code, text, err = szilard("acquire", *file, "--prior", priors / prior, "--out", folder, *settings, *options)
        assert code == 0, err
        return xr.load_dataset(folder / "result.nc", engine="h5netcdf"), text, err

    return scan


def order_of(found):
    return found["acq_order"].values[0].tolist()


def mask_of(found):
    return found["mask"].values[0] > 0


# ---- train-prior


def test_a_trained_prior_is_read_by_everything_and_is_a_function_of_its_seed(szilard, priors, tmp_path):
    trained = load_prior(priors / "atlas")
    assert isinstance(trained, GaussianMixturePrior)
    assert trained.shape == (2, SIZE, SIZE)
    assert trained.basis.shape == (4, 2 * SIZE * SIZE, 8)
    norms = Atlas(SIZE).sample(300, 0).flatten(1).norm(dim=1)
    assert trained.training_norm == pytest.approx(float(norms.square().mean().sqrt()), rel=0.01)
    code, text, err = szilard(*ATLAS, "--out", tmp_path / "again")
    assert code == 0
    assert text.strip() == str(tmp_path / "again")
    assert "300 images" in err
    assert torch.equal(load_prior(tmp_path / "again").means, trained.means)
    assert szilard(*ATLAS, "--out", tmp_path / "other", "--seed", 1)[0] == 0
    assert not torch.equal(load_prior(tmp_path / "other").means, trained.means)


def test_a_prior_is_not_written_over(szilard, priors):
    before = (priors / "atlas" / "weights.safetensors").read_bytes()
    code, _, err = szilard(*ATLAS, "--out", priors / "atlas", "--seed", 1)
    assert code == 2
    assert err.endswith("holds a prior already\n")
    assert (priors / "atlas" / "weights.safetensors").read_bytes() == before


def test_a_prior_of_a_users_file(szilard, tmp_path, write):
    np.save(tmp_path / "mine.npy", Digits().train()[:40].numpy())
    code, _, err = szilard(
        "train-prior", tmp_path / "mine.npy", "--components", 2, "--rank", 3, "--out", tmp_path / "p"
    )
    assert code == 0, err
    assert load_prior(tmp_path / "p").shape == (1, 8, 8)


def test_a_training_that_was_killed_goes_on_to_the_same_weights(szilard, priors, tmp_path, monkeypatch):
    arguments = ("train-prior", "digits", "--count", 40, "--kind", "unet", "--widths", "4,8", "--depth", 1)
    arguments += ("--steps", 6, "--batch", 4, "--learning-rate", 1e-2)
    assert szilard(*arguments, "--out", tmp_path / "whole")[0] == 0
    update, done = training._Run.update, []

    def killed(self, images):
        if self.step == 5:
            raise RuntimeError("killed")
        update(self, images)

    def counted(self, images):
        done.append(self.step)
        update(self, images)

    monkeypatch.setattr(training._Run, "update", killed)
    with pytest.raises(RuntimeError, match="killed"):
        szilard(*arguments, "--out", tmp_path / "killed")
    assert not (tmp_path / "killed" / "prior.json").exists()
    monkeypatch.setattr(training._Run, "update", counted)
    code, _, err = szilard(*arguments, "--seed", 7, "--out", tmp_path / "killed")
    assert code == 2
    assert "seed 42, but this training has 7; remove the file to start anew" in err
    assert szilard(*arguments, "--out", tmp_path / "killed")[0] == 0
    assert done == [5]  # from the last checkpoint on
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    # Six steps of about the learning rate each: the average is not one of untrained weights, which are zero.
    assert one["head.weight"].abs().max() > 1e-2


@pytest.mark.parametrize("how", ["finetune", "seppo"])
def test_a_network_is_adapted_to_other_images(szilard, priors, tmp_path, how):
    winners = Atlas(SIZE).sample(12, 9)
    np.save(tmp_path / "site.npy", to_complex(winners).numpy())
    arguments = ("train-prior", tmp_path / "site.npy", "--start", priors / "unet", "--adaptation", how)
    arguments += ("--steps", 2, "--batch", 4, "--learning-rate", 1e-2, "--out", tmp_path / "new")
    code, text, err = szilard(*arguments)
    assert code == 0, err
    old, new = load_prior(priors / "unet"), load_prior(tmp_path / "new")
    assert isinstance(new, NetworkPrior)
    assert new.shape == old.shape
    weights = new.state_dict()
    assert any(not torch.equal(value, weights[name]) for name, value in old.state_dict().items())
    rows = json.loads((tmp_path / "new" / "adaptation.json").read_text())
    found = {(row["method"], row["metric"]): row for row in rows}
    assert {method for method, _ in found} == {"before", "finetune", how}
    for method in {"finetune", how}:
        for metric in ("SSIM, new images", "denoising error, old images", "gain in SSIM", "drift"):
            row = found[method, metric]
            assert row["low"] <= row["mean"] <= row["high"]
            assert row["n"] == 3  # every fifth image of the file was kept from the training
            assert metric in text
    # Both were started from again: nothing is trained anew.
    (tmp_path / "new" / "prior.json").unlink()
    assert szilard(*arguments)[0] == 0
    again = load_prior(tmp_path / "new").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.items())


def test_an_adaptation_that_cannot_be_judged_is_refused_before_it_is_trained(szilard, priors, tmp_path):
    np.save(tmp_path / "few.npy", to_complex(Atlas(SIZE).sample(4, 9)).numpy())
    arguments = ("train-prior", tmp_path / "few.npy", "--start", priors / "unet", "--out", tmp_path / "new")
    code, _, err = szilard(*arguments, "--steps", 2)
    assert code == 2
    assert "1 test images: at least 2 are needed" in err
    assert not (tmp_path / "new").exists()
    assert "--precision, --ema: are of a training" in szilard(*arguments, "--ema", 0.5)[2]


def test_magnitude_images_make_a_prior_of_k_space(szilard, acquire, priors, tmp_path):
    """The file's blank images are left out; its real images become complex ones of another size."""
    images = Atlas(24).sample(30, 3).norm(dim=1)
    images[:5] = 0
    nibabel.save(nibabel.Nifti1Image(200 * images.movedim(0, -1).numpy(), np.eye(4)), tmp_path / "mine.nii.gz")
    few = ("--components", 2, "--rank", 3)
    arguments = ("train-prior", tmp_path / "mine.nii.gz", "--size", SIZE, *few, "--out", priors / "mine")
    code, _, err = szilard(*arguments)
    assert code == 2
    assert "--size 16: a file keeps its own, unless --complex" in err
    code, _, err = szilard(*arguments, "--complex")
    assert code == 0, err
    assert "20 images" in err
    prior = load_prior(priors / "mine")
    assert prior.shape == (2, SIZE, SIZE)
    assert 0.5 < float(prior.means.abs().max()) <= 1.0
    found, *_ = acquire([tmp_path / "mine.nii.gz", "--kind", "image", "--slice", 7], "--budget", 4, prior="mine")
    assert mask_of(found).sum() == 4
    code, _, err = szilard("train-prior", "atlas", "--complex", "--out", tmp_path / "no")
    assert code == 2
    assert "--complex: is for images of a file" in err


def test_a_mixture_does_not_take_the_place_of_an_unfinished_network(szilard, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "checkpoint").write_bytes(b"half a network")
    code, _, err = szilard(*ATLAS, "--out", tmp_path / "p")
    assert code == 2
    assert "unfinished training of a U-Net" in err


# ---- acquire


def test_the_subject_is_scanned_alike_from_every_format(acquire, write):
    """One subject in six files: the same order of lines, and the same quality."""
    found = {
        name: acquire(write(name), "--budget", 6, out=name)[0]
        for name in ("npy", "npz", "image", "nifti", "fastmri", "cfl")
    }
    first = found["npy"]
    assert len(set(order_of(first))) == 5
    for name, data in found.items():
        assert order_of(data) == order_of(first), name
        assert int(mask_of(data).sum()) == 6
        assert float(data["psnr"][0]) == pytest.approx(float(first["psnr"][0]), abs=0.01)


def test_what_is_written_agrees(acquire, write, priors, tmp_path):
    found, text, err = acquire(write("npy"), "--budget", 6, "--initial", 2)
    assert sorted(p.name for p in (tmp_path / "scan").iterdir()) == [
        "mask.cfl", "mask.csv", "mask.hdr", "result.nc", "scan.png",
    ]  # fmt: skip
    assert (tmp_path / "scan" / "scan.png").read_bytes().startswith(b"\x89PNG")
    mask = mask_of(found)
    assert mask.sum() == 6
    assert int(found["actions"][0]) == 6
    order = read_mask_csv(tmp_path / "scan" / "mask.csv", SIZE)
    assert order.lines == (7, 8, *order_of(found))
    assert order.steps == (None, None, *found["acq_step"].values.tolist())
    scores = [float(found["line_entropy"][0, i, line]) for i, line in enumerate(order_of(found))]
    assert order.entropy == (None, None, *(pytest.approx(s) for s in scores))
    assert np.array_equal(order.mask().numpy(), mask)
    assert np.array_equal(read_mask_cfl(tmp_path / "scan" / "mask", SIZE).numpy(), mask)
    assert "6 of 16 (2.67-fold acceleration)" in text
    assert "cropped" not in text
    assert ", ".join(f"{line - 8:+d}" for line in order_of(found)) in text
    assert f"{float(found['psnr'][0]):.4g}" in text
    assert text.splitlines()[-1] == str(tmp_path / "scan" / "scan.png")
    assert "6 of 6 lines" in err
    assert {"version", "commit", "file", "scale"} <= found.attrs.keys()
    settings = json.loads(found.attrs["settings"])
    assert (settings["steps"], settings["particles"], settings["score"]) == (10, 4, "kl")
    assert found["particles"].sizes["particle"] == 4
    # An image of many particles has less error than they have, and they have spread.
    assert float(found["std"].max()) > 0


def test_the_acquired_samples_are_in_the_image(acquire, write, subject):
    found, *_ = acquire(write("npy"), "--budget", 5)
    image = torch.from_numpy(found["recon"].values[0])
    mine = fft2c(to_complex(image))
    theirs = float(found.attrs["scale"]) * fft2c(subject)
    taken = torch.from_numpy(mask_of(found))
    torch.testing.assert_close(mine[:, taken], theirs[:, taken], atol=1e-4, rtol=1e-4)
    assert (mine - theirs)[:, ~taken].abs().max() > 0.01


def test_the_unit_of_the_file_does_not_matter(acquire, write, subject):
    runs = [acquire(write("npy", f * fft2c(subject).numpy()), out=str(f))[0] for f in (1, 1e-6)]
    assert order_of(runs[0]) == order_of(runs[1])
    assert float(runs[1].attrs["scale"]) == pytest.approx(1e6 * float(runs[0].attrs["scale"]), rel=1e-3)
    assert float(runs[0]["psnr"][0]) == pytest.approx(float(runs[1]["psnr"][0]), abs=0.01)


@pytest.mark.parametrize("options", [("--scale", 1.3), ()])
def test_what_is_not_acquired_has_no_influence(acquire, write, subject, options):
    first, *_ = acquire(write("npy"), *options, "--budget", 6)
    changed = fft2c(subject).numpy()
    changed[:, ~mask_of(first)] = 3j
    second, *_ = acquire(write("npy", changed), *options, "--budget", 6, out="other")
    for name in ("acq_order", "line_entropy", "particles", "residual", "image"):
        np.testing.assert_array_equal(first[name].values, second[name].values)
    assert float(first["psnr"][0]) != float(second["psnr"][0])  # the truth, which is another


def test_the_seed_makes_the_scan(acquire, write):
    runs = [acquire(write("npy"), "--seed", seed, out=f"{i}")[0] for i, seed in enumerate((1, 1, 2))]
    np.testing.assert_array_equal(runs[0]["particles"].values, runs[1]["particles"].values)
    assert not np.array_equal(runs[0]["particles"].values, runs[2]["particles"].values)


def test_of_an_undersampled_file_only_recorded_lines_are_chosen_and_no_metric_is_claimed(acquire, write, subject):
    recorded = [1, 5, 8, 9, 14]
    kspace = fft2c(subject).numpy()
    kspace[:, np.setdiff1d(range(SIZE), recorded)] = 0
    found, text, _ = acquire(write("npy", kspace), "--budget", 5)
    assert np.flatnonzero(mask_of(found)).tolist() == recorded
    assert not {"psnr", "ssim", "nmse", "mae", "target", "target_image"} & set(found)
    assert "not known: the file is undersampled" in text
    assert "PSNR" not in text


def test_without_a_budget_no_more_is_asked_of_a_file_than_it_holds(acquire, write, subject):
    kspace = fft2c(subject).numpy()
    kspace[:, np.setdiff1d(range(SIZE), [8, 9])] = 0
    assert np.flatnonzero(mask_of(acquire(write("npy", kspace))[0])).tolist() == [8, 9]
    assert mask_of(acquire(write("npy"), out="full")[0]).sum() == 4  # a quarter


def test_the_protocols_padding_is_not_chosen(acquire, szilard, write, subject, priors, tmp_path):
    kspace = fft2c(subject).numpy()
    kspace[:, :3] = 0
    kspace[:, 13:] = 0
    # center 5, maximum 9: lines 16 // 2 - 5 = 3 to 3 + 9 = 12
    file = write("fastmri", kspace, limits=(5, 9))
    found, text, _ = acquire(file, "--budget", 10)
    assert np.flatnonzero(mask_of(found)).tolist() == list(range(3, 13))
    assert "PSNR" in text  # all that the protocol could acquire is there: this is a truth
    code, _, err = szilard("acquire", *file, "--prior", priors / "atlas", "--budget", 11, "--out", tmp_path / "o")
    assert code == 2
    assert "--budget 11: must be between 1 (initial) and 10" in err


@pytest.mark.parametrize("kind", ["image", "kspace"])
def test_it_is_said_when_the_data_are_brought_to_the_priors_grid(acquire, tmp_path, kind):
    image = to_complex(Atlas(24).sample(1, 1))
    np.save(tmp_path / "large.npy", (image if kind == "image" else fft2c(image)).numpy())
    _, text, _ = acquire([tmp_path / "large.npy", "--kind", kind], "--budget", 4)
    assert "24 x 24, cropped or padded to 16 x 16" in text


def test_several_coils(acquire, tmp_path):
    image = to_complex(Atlas(32).sample(1, 1))[0]
    np.save(tmp_path / "coils.npy", fft2c(coil_maps(4, 32, 32) * image).numpy())
    file = [tmp_path / "coils.npy", "--kind", "kspace"]
    found, text, _ = acquire(file, "--budget", 19, prior="large")
    mask = mask_of(found)
    assert mask.sum() == 19
    assert mask[8:24].all()  # the calibration lines count
    assert found["acq_order"].shape == (1, 3)
    np.testing.assert_allclose(found["target_image"][0], float(found.attrs["scale"]) * image.abs(), atol=1e-3)
    assert "target" not in found  # of several coils only the magnitude is known
    assert "PSNR" in text
    assert mask_of(acquire(file, prior="large", out="plain")[0]).sum() == 16


def test_a_scale_far_off_is_warned_of_in_one_line(acquire, write):
    _, _, err = acquire(write("npy"), "--scale", 1e5, "--budget", 2)
    warnings = [line for line in err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "the images have norm" in warnings[0]
    assert warnings[0].endswith("give --scale, or leave it to the tool")
    assert "warning" not in acquire(write("npy"), "--budget", 2, out="right")[2]


def test_what_a_careful_user_should_know_is_a_warning_of_one_line(acquire, write, priors, tmp_path):
    assert "warning" not in acquire(write("npy"), "--budget", 4)[2]
    _, _, err = acquire(write("npy"), "--budget", 1, out="none")
    assert "warning: the 1 initial lines are the whole budget, nothing is left to choose" in err
    # Of a belief far narrower than the particles' spread every line is worth log P.
    found, text, err = acquire(write("npy"), "--budget", 5, "--sigma", 1e-6, out="narrow")
    assert "warning: the particles disagreed on every line by more than the score can tell" in err
    assert "saturated" in text
    prior = load_prior(priors / "atlas")
    energy = fft2c(to_complex(prior.draw(256, torch.Generator().manual_seed(0)))).abs().square().sum(1).mean(0)
    energy[SIZE // 2] = 0
    assert set(order_of(found)) <= set(energy.topk(6).indices.tolist())  # not the edge of k-space, where ties begin


def test_the_stop_rule_stops_early_and_leaves_a_whole_record(acquire, write, tmp_path):
    options = ("--sampler", "exact", "--budget", 14, "--stop")
    never, early = (acquire(write("npy"), *options, nmse, out=str(nmse))[0] for nmse in (0.0, 0.05))
    assert mask_of(never).sum() == 14
    taken = int(mask_of(early).sum())
    assert 1 < taken < 14
    assert order_of(early)[: taken - 1] == order_of(never)[: taken - 1]
    assert set(order_of(early)[taken - 1 :]) == {-1}
    order = read_mask_csv(tmp_path / "0.05" / "mask.csv", SIZE)
    assert order.lines == (8, *order_of(early)[: taken - 1])


def test_an_animation_shows_every_acquisition(acquire, write, tmp_path):
    acquire(write("npy"), "--budget", 4, "--gif")
    with Image.open(tmp_path / "scan" / "scan.gif") as animation:
        assert animation.format == "GIF"
        assert animation.n_frames == 4  # one for each of three chosen lines, and the end
    assert sorted(p.suffix for p in (tmp_path / "scan").iterdir()) == [".cfl", ".csv", ".gif", ".hdr", ".nc", ".png"]


def test_real_images_are_scanned_by_pixels_and_drawn_so(acquire, tmp_path, monkeypatch):
    monkeypatch.undo()  # this one is drawn
    np.save(tmp_path / "digit.npy", Digits().test()[:2].numpy())
    file = [tmp_path / "digit.npy", "--kind", "image", "--slice", 1]
    found, text, _ = acquire(file, "--budget", 9, "--gif", prior="digits")
    assert found["mask"].shape == (1, 64)
    assert mask_of(found).sum() == 9
    assert found["subject"].values.tolist() == [1]
    assert f"order     {', '.join(map(str, order_of(found)))}" in text
    with Image.open(tmp_path / "scan" / "scan.png") as picture:
        assert np.asarray(picture.convert("L"), float).std() > 5


def test_a_network_prior_scans_too(acquire, write):
    found, *_ = acquire(write("npy"), "--budget", 3, prior="unet")
    assert mask_of(found).sum() == 3
    assert int(found["n_forward"]) == 10


# ---- compare and export-masks


@pytest.fixture(scope="module")
def compared(priors, tmp_path_factory):
    """A comparison of two methods on four subjects, done once in this process."""
    folder = tmp_path_factory.mktemp("compared") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MRIStudy, "run", partialmethod(MRIStudy.run, workers=0))
        for name in ("of_scenario", "of_budgets"):
            patch.setattr(figures, name, lambda *_, **__: [])
        options = ("--prior", priors / "atlas", "--size", SIZE, "--budgets", "3,5", "--methods", "ads,lowpass")
        assert call("compare", "atlas", *options, "--subjects", 4, *QUICK, "--out", folder) == 0
    return folder


def test_compare_reports_each_method_at_each_budget(compared):
    summary = json.loads((compared / "summary.json").read_text())
    rows = {(r["scenario"], r["method"]): r for r in summary["table"] if r["metric"] == "PSNR"}
    assert set(rows) == {(f"atlas_B{b}", m) for b in (3, 5) for m in ("ads", "lowpass")}
    for row in rows.values():
        assert row["n"] == 4
        assert row["low"] <= row["mean"] <= row["high"]
    for method in ("ads", "lowpass"):
        assert rows["atlas_B5", method]["mean"] > rows["atlas_B3", method]["mean"]
    assert summary["claims"] == []
    assert "atlas_B5" in (compared / "report.html").read_text()


def test_exported_masks_are_those_of_the_study(szilard, compared, tmp_path):
    code, text, _ = szilard("export-masks", compared, "--out", tmp_path / "masks")
    assert code == 0
    assert text.splitlines() == ["10 masks of ADS", str(tmp_path / "masks")]
    for budget in (3, 5):
        data = xr.load_dataset(compared / "results.nc", group=f"atlas_B{budget}", engine="h5netcdf")
        masks = data["mask"].sel({"method": "ads"}).isel(budget=0, seed=0).values > 0
        folder = tmp_path / "masks" / f"atlas_B{budget}"
        for i, mask in enumerate(masks):
            order = read_mask_csv(folder / f"subject_{i:04d}.csv", SIZE)
            assert np.array_equal(order.mask().numpy(), mask)
            assert np.array_equal(read_mask_cfl(folder / f"subject_{i:04d}", SIZE).numpy(), mask)
            assert order.lines[0] == SIZE // 2  # the initial line comes first
        assert int(read_mask_cfl(folder / "population", SIZE).sum()) == budget


def test_the_default_methods_fit_the_measurement(szilard, monkeypatch, tmp_path):
    """Pixels have no centre, so that masks with a centre block are not among them."""
    asked = []
    monkeypatch.setattr(MRIStudy, "run", lambda self, *_, **__: asked.append(self))
    monkeypatch.setattr(cli, "print_summary", lambda *_: None)
    for images in ("digits", "adaptivity"):
        code, _, err = szilard("compare", images, "--out", tmp_path / images)
        assert code == 0, err
    pixels, lines = (study.scenarios[0] for study in asked)
    assert (pixels.operator, lines.operator) == ("pixels", "kspace_lines")
    assert (pixels.initial, lines.initial) == (0, 1)
    assert "fastmri" in lines.methods
    assert not {"fastmri", "vds", "lowpass"} & set(pixels.methods)
    assert {"ads", "random", "greedy_fixed"} <= set(pixels.methods) & set(lines.methods)


# ---- info


def test_info_says_what_a_file_holds(szilard, write, subject):
    said = {name: szilard("info", *write(name))[1] for name in ("npy", "nifti", "fastmri", "cfl")}
    for name in ("npy", "fastmri", "cfl"):
        assert "k-space of 1 slice, 1 coil " in said[name]
        assert "16 x 16" in said[name]
        assert "fully" in said[name]
        assert f"{float(subject.abs().square().sum().sqrt()):.4g}" in said[name]
    assert "1 complex images of 16 x 16" in said["nifti"]
    assert "CORPD_FBK" in said["fastmri"]
    assert "jane" not in said["fastmri"]
    kspace = fft2c(subject).numpy()
    kspace[:, ::2] = 0
    text = szilard("info", *write("npz", kspace))[1]
    assert "50.00% of all positions" in text
    assert "8 of 16 in slice 0 (2.00-fold)" in text
    kspace = fft2c(subject).numpy()
    kspace[:, :3], kspace[:, 13:] = 0, 0
    text = szilard("info", *write("fastmri", kspace, limits=(5, 9)))[1]
    assert "3 to 12" in text
    assert "fully" in text


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ("atlas", ("GaussianMixturePrior", "2 x 16 x 16 (real and imaginary part)", "components")),
        ("digits", ("GaussianMixturePrior", "1 x 8 x 8", "rank")),
        ("unet", ("NetworkPrior", "2 x 16 x 16", "weights")),
    ],
)
def test_info_says_what_a_prior_is_of(szilard, priors, prior, words):
    code, text, _ = szilard("info", priors / prior)
    assert code == 0
    assert all(word in text for word in words)
    assert f"{load_prior(priors / prior).training_norm:.4g}" in text


# ---- mistakes


SCAN = ["acquire", "KSPACE", "--kind", "kspace", "--prior", "PRIOR", "--out", "OUT"]
TRAIN = ["train-prior", "digits", "--count", "20", "--out", "OUT"]
COMPARE = ["compare", "atlas", "--size", "16", "--subjects", "2", "--out", "OUT"]
REFUSALS = [
    ([*SCAN, "--budget", "17"], "--budget 17: must be between 1 (initial) and 16"),
    ([*SCAN, "--budget", "3", "--initial", "4"], "--budget 3: must be between 4 (initial) and 16"),
    ([*SCAN, "--initial", "17"], "initial: 17, must be between 0 and 16"),
    ([*SCAN, "--slice", "1"], "slice 1, must be between 0 and 0"),
    ([*SCAN, "--scale", "0"], "scale: 0.0, must be greater than 0"),
    ([*SCAN, "--window", "0.6,0.2"], "--window 0.6,0.2: must be 0 <= from < to <= 1"),
    ([*SCAN, "--window", "0,1.5"], "--window 0,1.5: must be 0 <= from < to <= 1"),
    ([*SCAN, "--window", "early"], "--window early: must be two numbers separated by a comma"),
    ([*SCAN, "--score", "magic"], "--score magic: must be one of kl, "),
    ([*SCAN, "--steps", "100001"], "acquire: steps = 100001: must be less than or equal to 100000"),
    ([*SCAN, "--particles", "4097"], "acquire: particles = 4097: must be less than or equal to 4096"),
    ([*SCAN, "--sampler", "exact", "--prior", "UNET"], "sampler: exact needs the mixture prior"),
    ([*SCAN, "--stop", "0.1"], "--stop: needs --sampler exact"),
    ([*SCAN, "--prior", "REAL"], "k-space is complex, but the prior is of real images"),
    ([*SCAN, "--prior", "OUT"], "prior.json: no such file"),
    ([*SCAN, "--out", "KSPACE/in"], "a.npy is a file, not a folder"),
    ([*SCAN, "--out", "KSPACE"], "a.npy: is a file, not a folder"),
    (["acquire", "KSPACE", "--prior", "PRIOR", "--out", "OUT"], "kind must be image or kspace"),
    (["acquire", "absent.npy", *SCAN[2:]], "absent.npy: no such file"),
    (["acquire", "a.dcm", *SCAN[2:]], "a.dcm: unknown format"),
    ([*TRAIN, "--components", "21"], "components: 21, must be between 1 and the number of images, 20"),
    ([*TRAIN, "--components", "2", "--rank", "64"], "rank: 64, must be between 1 and 63"),
    ([*TRAIN, "--learning-rate", "0"], "train-prior: learning_rate = 0.0: must be greater than 0"),
    ([*TRAIN, "--kind", "unet", "--widths", "a"], "--widths a: must be whole numbers"),
    ([*TRAIN, "--kind", "unet", "--widths", "4,0"], "widths [4, 0], depth 2: each must be at least 1"),
    ([*TRAIN, "--kind", "unet", "--widths", "4,4,4,4,4"], "8 x 8: height and width must be multiples of 16"),
    ([*TRAIN, "--start", "PRIOR"], "--start: a mixture is not adapted"),
    ([*TRAIN, "--start", "UNET"], "images of shape (1, 8, 8): the prior's are (2, 16, 16)"),
    (["train-prior", "absent.npy", "--out", "OUT"], "absent.npy: no such file, and not one of digits, atlas"),
    (["train-prior", "mnist", "--data", "absent", "--out", "OUT"], "mnist: absent does not exist"),
    ([*COMPARE, "--budgets", "17"], "atlas_B17: budget 17, must be at most the 16 actions"),
    ([*COMPARE, "--budgets", "0"], "scenarios.0.budget = 0: must be greater than or equal to 1"),
    ([*COMPARE, "--budgets", "4,4"], "--budgets 4,4: one stands there twice"),
    ([*COMPARE, "--budgets", "many"], "--budgets many: must be whole numbers"),
    ([*COMPARE, "--methods", "ads,magic"], "= \"magic\": must be 'ads', "),
    ([*COMPARE, "--methods", "ads,loupe"], "method loupe needs the key loupe"),
    ([*COMPARE, "--prior", "REAL"], "is of images of shape (1, 8, 8), the test images have (2, 16, 16)"),
    ([*COMPARE, "--steps", "100001"], "compare: steps = 100001: must be less"),
    (["compare", "digits", "--subjects", "298", "--out", "OUT"], "but there are 297 test images"),
    (["export-masks", "OUT", "--out", "OUT"], "has no results.nc; szilard mri run writes it"),
    (["info", "OUT"], "unknown format"),
    (["info", "FOLDER"], "prior.json: no such file"),
]


@pytest.fixture
def places(priors, write, tmp_path):
    """What the capital words of a command stand for."""
    (tmp_path / "folder").mkdir()
    named = {"PRIOR": priors / "atlas", "REAL": priors / "digits", "UNET": priors / "unet"}
    return named | {"KSPACE": write("npy")[0], "OUT": tmp_path / "out", "FOLDER": tmp_path / "folder"}


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(a) for a, _ in REFUSALS])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(szilard, tmp_path, places, arguments, message):
    before = sorted(tmp_path.rglob("*"))
    spoken = []
    for word in arguments:
        first, *rest = word.split("/")
        spoken.append("/".join([str(places.get(first, first)), *rest]))
    code, text, err = szilard(*spoken)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err + text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--sigma", "--omega", "--particles", "--budget"])
def test_impossible_numbers_are_refused_by_their_option(szilard, places, option):
    value = {"--sigma": "0", "--omega": "-1", "--particles": "1", "--budget": "0"}[option]
    code, _, err = szilard(*(str(places.get(a, a)) for a in SCAN), option, value)
    assert code == 2
    assert option in err
    assert "greater than or equal to" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", "NaN or infinite samples in slice 0"),
        ("zero", "all samples are zero"),
        ("points", "points, not lines, were left out"),
        ("short", "cannot be read whole"),
        ("pickle", "cannot be read whole"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(szilard, priors, write, subject, tmp_path, change, message):
    kspace = fft2c(subject).numpy()
    if change == "nan":
        kspace[3, 4] = np.nan
    elif change == "zero":
        kspace[:] = 0
    elif change == "points":
        kspace[np.random.default_rng(0).random(kspace.shape) < 0.5] = 0
    file = write("npy", kspace)
    if change == "short":
        file[0].write_bytes(file[0].read_bytes()[:-9])
    elif change == "pickle":
        np.save(file[0], np.array([{"a": 1}], dtype=object), allow_pickle=True)
    code, _, err = szilard("acquire", *file, "--prior", priors / "atlas", "--out", tmp_path / "o")
    assert code == 2
    assert "a.npy" in err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ismrmrd_header": HEADER.format(8, 15)}, "must have kspace (fastMRI)"),
        ({"kspace": np.ones((1, 16, 16), np.complex64)}, "no array ismrmrd_header"),
        ({"kspace": np.ones((1, 16, 16)), "ismrmrd_header": HEADER.format(8, 15)}, "kspace: float64, must be complex"),
        (
            {"kspace": np.ones((1, 16, 16), np.complex64), "ismrmrd_header": HEADER.format(8, 15), "mask": np.ones(15)},
            "mask: shape (15,), must be (16,)",
        ),
        (
            {
                "kspace": np.ones((1, 16, 16), np.complex64),
                "ismrmrd_header": HEADER.format(8, 15),
                "mask": np.full(16, 0.5),
            },
            "mask: not binary: holds 0.5",
        ),
    ],
)
def test_an_hdf5_file_is_refused_with_its_key(szilard, priors, tmp_path, keys, message):
    path = tmp_path / "file1.h5"
    with h5py.File(path, "w") as file:
        file.update(keys)
    code, _, err = szilard("acquire", path, "--prior", priors / "atlas", "--out", tmp_path / "o")
    assert code == 2
    assert "file1.h5" in err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_test_file_is_no_ground_truth(szilard, write, subject, tmp_path):
    kspace = fft2c(subject).numpy()
    kspace[:, ::2] = 0
    code, _, err = szilard("train-prior", write("fastmri", kspace)[0], "--out", tmp_path / "p")
    assert code == 2
    assert "file1.h5: undersampled (50.00% of its positions hold a sample): a ground truth must be fully sampled" in err


# ---- a real slice


@pytest.fixture
def brain():
    """One real slice of eight coils, undersampled point by point."""
    folder = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    path = folder / "mri" / "brain_8ch_poisson_ksp.npy"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    return path


def test_a_real_slice_is_described_and_refused(szilard, brain, priors, tmp_path):
    code, text, _ = szilard("info", brain, "--kind", "kspace")
    assert code == 0
    assert "1 slice, 8 coils" in text
    assert "230 x 180" in text
    assert "12.43% of all positions" in text
    code, _, err = szilard("acquire", brain, "--kind", "kspace", "--prior", priors / "large", "--out", tmp_path / "o")
    assert code == 2
    assert "points, not lines, were left out" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()
