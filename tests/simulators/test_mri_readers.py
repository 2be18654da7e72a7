"""Readers of MRI files: agreement with the field's own libraries, round trips, and what is refused."""

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from core.errors import InputError
from core.torchvision_guard import shield
from simulators.mri import operators
from simulators.mri.readers import (
    KSpace,
    fastmri_slices,
    fastmri_volume,
    fit_kspace,
    kspace_from_cfl,
    kspace_to_cfl,
    read,
    read_cfl,
    read_fastmri,
    read_ismrmrd,
    read_mask_cfl,
    read_mask_csv,
    read_reference_slice,
    read_split,
    stack,
    training_images,
    write_cfl,
    write_mask_cfl,
    write_mask_csv,
)
from simulators.mri.readers.fastmri import fastmri_dataset

shield()
fastmri = pytest.importorskip("fastmri", reason="fastmri is not installed")
fastmri_data = pytest.importorskip("fastmri.data")
transforms = pytest.importorskip("fastmri.data.transforms")
ismrmrd = pytest.importorskip("ismrmrd", reason="ismrmrd is not installed")
nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")

PATIENT = "patient-0815-jane"


def header(encoded=(64, 40, 1), recon=(32, 32, 1), center=20, maximum=39, trajectory="cartesian", fov=(280, 140)):
    space = (
        "<{0}><matrixSize><x>{1}</x><y>{2}</y><z>{3}</z></matrixSize>"
        "<fieldOfView_mm><x>{4}</x><y>140</y><z>5</z></fieldOfView_mm></{0}>"
    )
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<subjectInformation><patientID>{PATIENT}</patientID></subjectInformation><encoding>"
        f"<trajectory>{trajectory}</trajectory>"
        + space.format("encodedSpace", *encoded, fov[0])
        + space.format("reconSpace", *recon, fov[1])
        + "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum>"
        f"<maximum>{maximum}</maximum><center>{center}</center></kspace_encoding_step_1></encodingLimits>"
        "</encoding></ismrmrdHeader>"
    )


def noise(*shape, seed=0, scale=1e-5):
    parts = np.random.default_rng(seed).normal(size=(*shape, 2)) * scale
    return (parts[..., 0] + 1j * parts[..., 1]).astype(np.complex64)


def write_volume(path, kspace, xml=None, mask=None, **arrays):
    """A file as fastMRI lays it out."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        if kspace is not None:
            file["kspace"] = kspace
        if xml is not False:
            file["ismrmrd_header"] = header() if xml is None else xml
        if mask is not None:
            file["mask"] = mask
        for name, array in arrays.items():
            file[name] = array
        file.attrs.update(acquisition="CORPD_FBK", max=3e-4, norm=0.04, patient_id=PATIENT)
    return path


@pytest.fixture
def knee(tmp_path):
    kspace = noise(5, 64, 40)
    target = np.random.default_rng(1).random((2, 5, 32, 32), dtype=np.float32)
    return write_volume(
        tmp_path / "knee" / "file1000007.h5", kspace, reconstruction_esc=target[0], reconstruction_rss=target[1]
    )


def padded(kspace, left, right):
    kspace = kspace.copy()
    kspace[..., :left] = 0
    kspace[..., right:] = 0
    return kspace


@pytest.fixture
def brain(tmp_path):
    target = np.random.default_rng(2).random((3, 32, 32), dtype=np.float32)
    return write_volume(
        tmp_path / "brain" / "file_brain_AXT2_1.h5",
        padded(noise(3, 4, 64, 40), 3, 36),
        xml=header(center=17, maximum=32),
        reconstruction_rss=target,
    )


@pytest.fixture
def undersampled_file(tmp_path):
    mask = np.zeros(40, dtype=np.float32)
    mask[[2, 18, 19, 20, 21, 33]] = 1
    kspace = noise(2, 64, 40) * mask.astype(np.complex64)
    return write_volume(tmp_path / "test" / "file1000022.h5", kspace, mask=mask)


def refused(call, *mentions):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for mention in mentions:
        assert str(mention) in message
    assert PATIENT not in message


# fastMRI


@pytest.mark.parametrize(
    ("name", "challenge"), [("knee", "singlecoil"), ("brain", "multicoil"), ("undersampled_file", "singlecoil")]
)
def test_slices_are_those_of_fastmri(name, challenge, request):
    path = request.getfixturevalue(name)
    dataset = fastmri_data.SliceDataset(path.parent, challenge)
    pairs = fastmri_slices(path.parent, challenge=challenge)
    assert [(sample.fname, sample.slice_ind) for sample in dataset.raw_samples] == pairs
    for (file, number), (kspace, mask, target, attrs, fname, _) in zip(pairs, dataset, strict=True):
        ours = read_fastmri(file, number)
        assert (ours.path.name, ours.index, ours.kspace.dtype) == (fname, (number,), torch.complex64)
        np.testing.assert_array_equal(ours.kspace[0].numpy().reshape(kspace.shape), kspace)
        assert ours.padding == (attrs["padding_left"], attrs["padding_right"])
        assert ours.attrs["recon_size"] == attrs["recon_size"]
        assert {key: ours.attrs[key] for key in ("acquisition", "max", "norm")} == {
            key: attrs[key] for key in ("acquisition", "max", "norm")
        }
        if target is None:
            assert ours.target is None
        else:
            np.testing.assert_array_equal(ours.target[0], target)
        if mask is not None:
            np.testing.assert_array_equal(ours.sampled[0], mask.astype(bool))


@pytest.mark.parametrize("name", ["knee", "brain"])
def test_images_and_rss_are_those_of_fastmri(name, request):
    volume = read_fastmri(request.getfixturevalue(name))
    images = fastmri_images(volume.kspace)
    torch.testing.assert_close(torch.view_as_real(volume.coil_images()), images, rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(volume.rss(), fastmri.rss(fastmri.complex_abs(images), dim=1), rtol=1e-5, atol=1e-10)
    if volume.coils == 1:
        torch.testing.assert_close(volume.image().movedim(1, -1), images[:, 0], rtol=1e-5, atol=1e-10)
        torch.testing.assert_close(operators.fft2c(operators.to_complex(volume.image())), volume.kspace[:, 0])
    else:
        refused(volume.image, volume.path, "4 coils")


@pytest.mark.parametrize(
    ("name", "challenge"), [("knee", "singlecoil"), ("brain", "multicoil"), ("undersampled_file", "singlecoil")]
)
def test_the_dataset_is_the_packages_and_gives_what_the_reader_gives(name, challenge, request):
    path = request.getfixturevalue(name)
    theirs = fastmri_data.SliceDataset(path.parent, challenge)
    ours = fastmri_dataset(path.parent, challenge)
    assert isinstance(ours, fastmri_data.SliceDataset)
    assert len(ours) == len(theirs)
    for number, (mine, other) in enumerate(zip(ours.raw_samples, theirs.raw_samples, strict=True)):
        assert mine[:2] == other[:2]
        assert mine.metadata == {key: value for key, value in other.metadata.items() if key != "patient_id"}
        item, wanted = ours[number], read_fastmri(path, number)
        assert torch.equal(item.kspace, wanted.kspace)
        assert torch.equal(item.sampled, wanted.sampled)
        assert (item.padding, item.attrs, item.path, item.index) == (wanted.padding, wanted.attrs, path, (number,))
        assert (item.target is None) == (wanted.target is None)
        assert wanted.target is None or torch.equal(item.target, wanted.target)
    batch = next(iter(torch.utils.data.DataLoader(ours, batch_size=2, collate_fn=stack)))
    assert torch.equal(batch, read_fastmri(path, [0, 1]).kspace)


def test_a_transform_of_the_package_works_behind_the_checks(knee):
    transform = transforms.UnetDataTransform("singlecoil")
    theirs = fastmri_data.SliceDataset(knee.parent, "singlecoil", transform)
    for mine, other in zip(fastmri_dataset(knee.parent, "singlecoil", transform), theirs, strict=True):
        for name, value in other._asdict().items():
            assert np.array_equal(getattr(mine, name), value), name
    seen = fastmri_dataset(knee.parent, "singlecoil", lambda *sample: sample)[3]
    assert seen[4:] == (knee.name, 3)
    assert PATIENT not in repr(seen)


def test_the_dataset_goes_to_workers_that_are_spawned(knee, tmp_path):
    split = tmp_path / "mine.txt"
    split.write_text(f"{knee.name}\n")
    dataset = fastmri_dataset(knee.parent, "singlecoil", split=split, with_rss=True)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.raw_samples == dataset.raw_samples
    assert torch.equal(again[4].kspace, dataset[4].kspace)


def test_items_of_the_dataset_that_cannot_be_read_are_refused(tmp_path):
    kspace = noise(5, 64, 40)
    kspace[3, 5, 5], kspace[4] = np.nan, 0
    path = write_volume(tmp_path / "v" / "file.h5", kspace)
    for transform in (None, lambda *sample: sample):
        dataset = fastmri_dataset(path.parent, "singlecoil", transform)
        assert len(dataset) == 5
        dataset[2]
        refused(lambda dataset=dataset: dataset[3], path, "kspace", "NaN", "slice 3")
        refused(lambda dataset=dataset: dataset[4], path, "kspace", "zero")
    refused(lambda: fastmri_dataset(path.parent, "multicoil"), path, "kspace", "singlecoil", "multicoil")
    path.write_bytes(path.read_bytes()[:1000])
    refused(lambda: dataset[2], path, "HDF5")
    path.unlink()
    refused(lambda: dataset[2], path, "no such file")


def test_a_folder_with_a_file_that_cannot_be_read_is_refused(tmp_path):
    for number, (changes, mentions) in enumerate(
        (
            ({"xml": False}, ("no array ismrmrd_header",)),
            ({"xml": header().replace("39", "39.0")}, ("ismrmrd_header", "39.0")),
            ({"mask": np.full(40, 0.5)}, ("mask", "binary")),
            ({"reconstruction_esc": np.ones((3, 32, 32))}, ("reconstruction_esc", "(3, 32, 32)")),
        )
    ):
        path = write_volume(tmp_path / str(number) / "file.h5", noise(2, 64, 40), **changes)
        refused(lambda path=path: fastmri_slices(path.parent), path, *mentions)
        refused(lambda path=path: fastmri_dataset(path.parent, "singlecoil"), path, *mentions)


def fastmri_images(kspace):
    return fastmri.ifft2c(transforms.to_tensor(kspace.numpy()))


def test_padding_is_no_undersampling_but_a_mask_is(brain, knee, undersampled_file):
    volume = read_fastmri(brain)
    assert volume.padding == (3, 36)
    assert volume.sampled[:, 3:36].all()
    assert volume.sampled.sum() == 3 * 33
    assert volume.require_full() is volume
    assert read_fastmri(knee).require_full().fraction == 1
    undersampled = read_fastmri(undersampled_file)
    assert undersampled.sampled.sum() == 2 * 6
    assert undersampled.fraction == pytest.approx(6 / 40)
    refused(undersampled.require_full, undersampled_file, "15.00%", "ground truth")
    refused(lambda: training_images(undersampled, 16), undersampled_file)


def test_zeroed_lines_points_and_slices_are_found_without_a_mask(tmp_path):
    every_other, points, empty = noise(2, 64, 40), noise(2, 64, 40), noise(2, 64, 40)
    every_other[..., ::2] = 0
    points *= np.random.default_rng(3).random((64, 40)) < 0.7
    empty[1] = 0
    for number, kspace in enumerate((every_other, points, empty)):
        refused(read_fastmri(write_volume(tmp_path / f"{number}.h5", kspace)).require_full, f"{number}.h5")
    echo = noise(2, 64, 40)
    echo[:, :16] = 0
    assert read_fastmri(write_volume(tmp_path / "echo.h5", echo)).fully_sampled


def test_only_the_slices_asked_for_are_read(tmp_path):
    kspace = noise(5, 64, 40)
    kspace[3, 5, 5] = np.nan
    path = write_volume(tmp_path / "file.h5", kspace)
    for asked, index in (
        (0, (0,)),
        (slice(1, 3), (1, 2)),
        ([4, 0], (4, 0)),
        (range(3), (0, 1, 2)),
        (np.int64(2), (2,)),
    ):
        volume = read_fastmri(path, asked)
        assert volume.index == index
        np.testing.assert_array_equal(volume.kspace[:, 0], kspace[list(index)])
    double = write_volume(tmp_path / "double.h5", kspace.astype(">c16"))
    np.testing.assert_array_equal(read_fastmri(double, [2, 0]).kspace[:, 0], kspace[[2, 0]])
    refused(lambda: read_fastmri(path, [1, 3]), path, "kspace", "slice 3")
    for wrong in (5, -1, [0, 7]):
        refused(lambda wrong=wrong: read_fastmri(path, wrong), path, "0..4")
    refused(lambda: read_fastmri(path, []), path)


def test_a_header_is_parsed_once_until_the_file_changes(knee, monkeypatch):
    from simulators.mri.readers import fastmri as reader

    parsed = []
    original = reader.Header
    monkeypatch.setattr(reader, "Header", lambda *a: parsed.append(1) or original(*a))
    for number in range(5):
        read_fastmri(knee, number)
    assert len(parsed) == 1
    write_volume(knee, noise(3, 64, 40))
    assert fastmri_volume(knee).shape == (3, 1, 64, 40)


def test_the_patient_is_not_kept(knee, brain):
    for path in (knee, brain):
        assert PATIENT not in repr(read_fastmri(path)) + repr(fastmri_volume(path))
        assert set(read_fastmri(path).attrs) == {"acquisition", "max", "norm", "recon_size"}


def test_slices_of_a_folder_follow_split_rss_and_challenge(tmp_path):
    folder = tmp_path / "val"
    for name in ("file2.h5", "file1.h5", "file3.h5"):
        arrays = {} if name == "file3.h5" else {"reconstruction_rss": np.ones((2, 32, 32), np.float32)}
        write_volume(folder / name, noise(2, 64, 40), **arrays)
    (folder / "notes.txt").write_text("not a volume")
    split = tmp_path / "mine.txt"
    split.write_text("file3.h5\n\nfile1.h5\n")
    names = [(path.name, number) for path, number in fastmri_slices(folder)]
    assert names == [(f"file{n}.h5", s) for n in (1, 2, 3) for s in (0, 1)]
    assert [path.name for path, _ in fastmri_slices(folder, split)] == ["file3.h5"] * 2 + ["file1.h5"] * 2
    assert [path.name for path, _ in fastmri_slices(folder, split, with_rss=True)] == ["file1.h5"] * 2
    refused(lambda: fastmri_slices(folder, "knee_test"), folder, "49", "knee_test", "file1000007.h5")
    refused(lambda: fastmri_slices(folder, challenge="multicoil"), "file1.h5", "kspace", "multicoil")
    refused(lambda: fastmri_slices(folder, challenge="brain"), "brain", "singlecoil")
    refused(lambda: fastmri_slices(folder / "none"), folder / "none")
    refused(lambda: fastmri_slices(tmp_path), tmp_path, "*.h5")


def test_the_packaged_splits_are_two_disjoint_parts(tmp_path):
    val, test = read_split("knee_val"), read_split("knee_test")
    assert (len(val), len(test), len({*val, *test})) == (48, 49, 97)
    assert (test[0], test[-1], val[0], val[-1]) == (
        "file1000007.h5",
        "file1002546.h5",
        "file1000000.h5",
        "file1002570.h5",
    )
    refused(lambda: read_split("knee_train"), "knee_train", "knee_test, knee_val")
    for text in ("a.h5\na.h5\n", "../a.h5\n", "\n"):
        (tmp_path / "s.txt").write_text(text)
        refused(lambda: read_split(tmp_path / "s.txt"), "s.txt")


# The published preprocessing


def test_training_images_crop_k_space_and_scale_as_published(tmp_path):
    path = write_volume(tmp_path / "f.h5", noise(2, 140, 148), xml=header((140, 148, 1), center=74, maximum=147))
    volume = read_fastmri(path)
    cropped = transforms.complex_center_crop(transforms.to_tensor(volume.kspace[:, 0].numpy()), (128, 128))
    expected = fastmri.ifft2c(cropped / 7.072103529760345e-07).movedim(-1, 1) / 100
    images = training_images(volume)
    assert (images.shape, images.dtype) == ((2, 2, 128, 128), torch.float32)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("old", [(8, 9), (9, 8)])
@pytest.mark.parametrize("new", [(5, 6), (6, 5), (8, 8), (12, 5), (11, 13)])
def test_training_images_keep_dc_in_its_place(old, new):
    """The package's crop alone would miss it for odd sizes of even ones, and cannot pad."""
    kspace = torch.from_numpy(noise(2, 1, *old))
    images = training_images(KSpace(kspace, torch.ones(2, old[1], dtype=torch.bool), (0, old[1])), new)
    expected = operators.ifft2c(fit_kspace(kspace[:, 0], new) / 7.072103529760345e-07)
    assert torch.equal(images, operators.to_channels(expected) / 100)
    refused(lambda: training_images(KSpace(kspace, torch.ones(2, old[1], dtype=torch.bool), (0, old[1])), 0), "0 x 0")


def test_the_references_checkerboard_is_taken_away(tmp_path):
    kspace = noise(16, 16, scale=1.0)
    theirs = np.fft.fftshift(np.fft.ifft2(kspace, norm="ortho"))
    layouts = {
        "complex": lambda a: a,
        "first": lambda a: np.stack([a.real, a.imag]),
        "last": lambda a: np.stack([a.real, a.imag], -1),
    }
    for name, layout in layouts.items():
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file["data/kspace"], file["data/complex_image"] = layout(kspace), layout(theirs)
        volume, image = read_reference_slice(path)
        torch.testing.assert_close(image, volume.image()[0], rtol=1e-4, atol=1e-5)
        _, raw = read_reference_slice(path, checkerboard=False)
        np.testing.assert_allclose(operators.to_complex(raw), theirs, rtol=1e-6, atol=1e-6)
        assert (raw - image).abs().max() > 0.1
        torch.testing.assert_close(operators.to_complex(raw).abs(), operators.to_complex(image).abs())
        assert torch.equal(read(path).kspace, volume.kspace)
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["data/kspace"], file["data/complex_image"] = kspace, theirs[:8]
    refused(lambda: read_reference_slice(tmp_path / "odd.h5"), "odd.h5", "data/complex_image", "(8, 16)")
    with h5py.File(tmp_path / "real.h5", "w") as file:
        file["data/kspace"], file["data/complex_image"] = kspace.real, theirs
    refused(lambda: read_reference_slice(tmp_path / "real.h5"), "real.h5", "data/kspace", "float32")


# Sizes


@pytest.mark.parametrize("old", [4, 5, 8, 9])
@pytest.mark.parametrize("new", [3, 4, 5, 8, 11])
def test_fitting_keeps_dc_in_its_place(old, new):
    kspace = torch.zeros(2, old, 7, dtype=torch.complex64)
    kspace[:, old // 2, 3] = 1
    fitted = fit_kspace(kspace, (new, 7))
    assert fitted.shape == (2, new, 7)
    assert fitted[0, new // 2, 3] == 1
    assert fitted.abs().sum() == 2
    if new >= old:
        random = torch.from_numpy(noise(2, old, 7))
        assert torch.equal(fit_kspace(fit_kspace(random, (new, 9)), (old, 7)), random)


def test_fitting_carries_lines_and_padding_along(brain):
    volume = read_fastmri(brain)
    for size in ((64, 30), (30, 41), (80, 60), (64, 38)):
        fitted = volume.fit(size)
        assert fitted.size == size
        assert torch.equal(fitted.sampled, (fitted.kspace != 0).flatten(1, 2).any(1))
        assert torch.equal(fitted.sampled[0].nonzero()[[0, -1], 0] + torch.tensor([0, 1]), torch.tensor(fitted.padding))
        assert fitted.fully_sampled
        assert fitted.target is None
    assert volume.fit((64, 40)) is volume


def test_slices_of_unequal_size_stack_only_when_fitted(knee, tmp_path):
    small = write_volume(tmp_path / "small.h5", noise(2, 60, 38), xml=header((60, 38, 1), center=19, maximum=37))
    volumes = [read_fastmri(knee), read_fastmri(small)]
    refused(lambda: stack(volumes), small, "(1, 60, 38)", "(1, 64, 40)", knee)
    assert stack(volumes, 32).shape == (7, 1, 32, 32)
    assert torch.equal(stack(volumes[:1]), volumes[0].kspace)
    refused(lambda: stack([]), "none")
    refused(lambda: stack(volumes, 0), "0 x 0")


# ISMRMRD


def write_scan(path, images, xml, *, skip=(), averages=1, spread=0.0, start=0, center_step=None, flags=(), seed=5):
    """Lines of images (slices, coils, readout, W) in random order, among noise scans; errors of repeats cancel."""
    random = np.random.default_rng(seed)
    kspace = operators.fft2c(torch.from_numpy(images)).numpy()
    slices, _, height, width = kspace.shape
    jobs = [(s, w, a) for s in range(slices) for w in range(width) if w not in skip for a in range(averages)]
    with ismrmrd.Dataset(str(path), "dataset", mode="w") as file:
        if xml is not None:
            file.write_xml_header(xml.encode())
        for count, job in enumerate(random.permutation(len(jobs))):
            s, w, a = jobs[job]
            error = spread * (a - (averages - 1) / 2)
            line = np.ascontiguousarray(kspace[s, :, start:, w] + np.complex64(error))
            if count % 7 == 0:
                junk = ismrmrd.Acquisition.from_array(np.full_like(line, 1e3)[:, :8].copy())
                junk.setFlag(flags[count % len(flags)] if flags else ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
                file.append_acquisition(junk)
            acquisition = ismrmrd.Acquisition.from_array(line)
            acquisition.scan_counter = count
            acquisition.center_sample = height // 2 - start
            acquisition.idx.slice, acquisition.idx.average = s, a
            acquisition.idx.kspace_encode_step_1 = w if center_step is None else w - width // 2 + center_step
            file.append_acquisition(acquisition)
    return path


def object_images(slices=2, coils=3, height=24, width=20, field=None):
    """Images that are empty outside the central ``field`` rows."""
    images = noise(slices, coils, height, width, seed=7, scale=1.0)
    if field is not None:
        edge = (height - field) // 2
        images[..., :edge, :] = 0
        images[..., edge + field :, :] = 0
    return images


def scan_header(height=24, width=20, **changes):
    return header(
        **{"encoded": (height, width, 1), "center": width // 2, "maximum": width - 1, "fov": (1, 1)} | changes
    )


def test_a_scan_gives_back_the_images(tmp_path):
    """Noise scans dropped, averages averaged, lines sorted, and readout oversampling removed."""
    images = object_images(height=48, field=24)
    path = write_scan(
        tmp_path / "scan.h5", images, scan_header(48, recon=(24, 20, 1), fov=(560, 280)), averages=3, spread=0.5
    )
    volume = read_ismrmrd(path)
    assert volume.kspace.shape == (2, 3, 24, 20)
    np.testing.assert_allclose(volume.coil_images(), images[:, :, 12:36], atol=2e-6)
    assert volume.fully_sampled
    assert volume.padding == (0, 20)
    assert PATIENT not in repr(volume)
    assert torch.equal(read(path).kspace, volume.kspace)


def test_lines_that_a_scan_leaves_out_are_known(tmp_path):
    images = object_images()
    volume = read_ismrmrd(write_scan(tmp_path / "scan.h5", images, scan_header(), skip=(0, 3, 19)))
    expected = operators.fft2c(torch.from_numpy(images))
    expected[..., [0, 3, 19]] = 0
    torch.testing.assert_close(volume.kspace, expected)
    assert [*(~volume.sampled[0]).nonzero()[:, 0]] == [0, 3, 19]
    refused(volume.require_full, "scan.h5")


def test_the_central_step_of_the_header_is_dc(tmp_path):
    """Partial Fourier: the protocol lacks the first 6 of 20 lines, and steps count from the first acquired."""
    images = object_images()
    path = write_scan(tmp_path / "scan.h5", images, scan_header(center=4, maximum=13), skip=range(6), center_step=4)
    volume = read_ismrmrd(path)
    assert volume.padding == (6, 20)
    torch.testing.assert_close(volume.kspace[..., 6:], operators.fft2c(torch.from_numpy(images))[..., 6:])
    assert volume.kspace[..., :6].abs().max() == 0


def test_an_asymmetric_echo_is_placed_by_its_centre(tmp_path):
    images = object_images()
    volume = read_ismrmrd(write_scan(tmp_path / "scan.h5", images, scan_header(), start=5))
    expected = operators.fft2c(torch.from_numpy(images))
    expected[..., :5, :] = 0
    torch.testing.assert_close(volume.kspace, expected)


def test_oversampling_is_removed_without_changing_the_noise(tmp_path):
    images = object_images(slices=1, height=200, width=50)
    volume = read_ismrmrd(write_scan(tmp_path / "s.h5", images, scan_header(200, 50, recon=(100, 50, 1), fov=(2, 1))))
    assert volume.kspace.shape == (1, 3, 100, 50)
    assert volume.kspace.abs().square().mean().item() == pytest.approx(2.0, rel=0.05)


def test_readouts_that_are_no_line_are_dropped_by_their_flag(tmp_path):
    flags = (ismrmrd.ACQ_IS_NAVIGATION_DATA, ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_DUMMYSCAN_DATA)
    images = object_images()
    volume = read_ismrmrd(write_scan(tmp_path / "scan.h5", images, scan_header(), flags=flags))
    torch.testing.assert_close(volume.kspace, operators.fft2c(torch.from_numpy(images)))


def test_scans_that_cannot_be_read_are_refused(tmp_path):
    images = object_images(slices=1)
    path = tmp_path / "scan.h5"
    for xml, mentions in (
        (scan_header(trajectory="spiral"), ("dataset/xml", "encoding/trajectory", "spiral")),
        (scan_header(width=12), ("dataset/data", "kspace_encode_step_1", "12")),
        (scan_header(height=20), ("dataset/data", "24 samples", "20")),
        ("<a>", ("dataset/xml", "not XML")),
        ("<a/>", ("dataset/xml", "matrixSize", "absent")),
        (None, ("xml",)),
    ):
        refused(lambda xml=xml: read_ismrmrd(write_scan(path, images, xml)), path, *mentions)
    write_scan(path, images, scan_header())
    with h5py.File(path, "a") as file:
        entries = file["dataset/data"]
        saved = entries[()]
        changed = saved.copy()
        changed["head"]["idx"]["kspace_encode_step_2"] = 3
        entries[...] = changed
    refused(lambda: read_ismrmrd(path), path, "dataset/data", "kspace_encode_step_2", "3-D")
    with h5py.File(path, "a") as file:
        changed = saved.copy()
        changed["head"]["number_of_samples"][4] = 12
        file["dataset/data"][...] = changed
    refused(lambda: read_ismrmrd(path), path, "dataset/data", "scan_counter", "12 samples")
    with h5py.File(path, "a") as file:
        changed = saved.copy()
        changed["head"]["flags"] = 1 << (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1)
        file["dataset/data"][...] = changed
    refused(lambda: read_ismrmrd(path), path, "dataset/data", "no line")
    with h5py.File(path, "a") as file:
        del file["dataset/data"]
        file["dataset/data"] = np.zeros(3)
    refused(lambda: read_ismrmrd(path), path, "dataset/data", "float64")


def test_contrasts_are_slices_of_their_own(tmp_path):
    images = object_images(slices=4)
    path = write_scan(tmp_path / "scan.h5", images, scan_header())
    with h5py.File(path, "a") as file:
        entries = file["dataset/data"][()]
        number = entries["head"]["idx"]["slice"].copy()
        entries["head"]["idx"]["slice"], entries["head"]["idx"]["contrast"] = number // 2, number % 2
        file["dataset/data"][...] = entries
    torch.testing.assert_close(read_ismrmrd(path).kspace, operators.fft2c(torch.from_numpy(images)))


# BART


def test_a_cfl_file_is_the_bytes_that_bart_defines(tmp_path):
    """First dimension fastest, real part first, little-endian; BART's own headers have more lines."""
    array = noise(3, 2, 1, 4, seed=9)
    write_cfl(tmp_path / "x", array)
    raw = np.frombuffer((tmp_path / "x.cfl").read_bytes(), dtype="<f4").reshape(-1, 2)
    for i, j, c in np.ndindex(3, 2, 4):
        assert raw[i + 3 * (j + 2 * c)].tolist() == [array[i, j, 0, c].real, array[i, j, 0, c].imag]
    assert (tmp_path / "x.hdr").read_text() == "# Dimensions\n3 2 1 4 1 1 1 1 1 1 1 1 1 1 1 1\n"
    (tmp_path / "x.hdr").write_text("# Dimensions\n3 2 1 4 1 \n# Command\nphantom -k x \n# Creator\nBART v0.9\n")
    for name in ("x", "x.cfl", "x.hdr"):
        again = read_cfl(tmp_path / name)
        assert again.shape == (3, 2, 1, 4) + (1,) * 12
        np.testing.assert_array_equal(again.reshape(array.shape), array)


@pytest.mark.parametrize("shape", [(1, 1, 6, 5), (1, 4, 6, 5), (3, 4, 6, 5), (3, 1, 6, 5)])
def test_k_space_goes_to_cfl_and_back(tmp_path, shape):
    kspace = torch.from_numpy(noise(*shape))
    array = kspace_to_cfl(kspace)
    assert array.shape == (6, 5, 1, shape[1]) + (1,) * 9 + (shape[0], 1, 1)
    assert array[2, 3, 0, shape[1] - 1].reshape(-1)[shape[0] - 1] == kspace[-1, -1, 2, 3].numpy()
    write_cfl(tmp_path / "k", array)
    volume = read(tmp_path / "k.cfl", "kspace")
    assert torch.equal(volume.kspace, kspace)
    assert volume.fully_sampled
    assert torch.equal(read(tmp_path / "k", "kspace").kspace, kspace)


def test_a_slice_encode_is_transformed_to_slices(tmp_path):
    images = torch.from_numpy(noise(5, 2, 6, 4))
    plane = operators.fft2c(images)
    encoded = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(plane, dim=0), dim=0, norm="ortho"), dim=0)
    array = encoded.permute(2, 3, 0, 1).numpy().reshape(6, 4, 5, 2, *(1,) * 12)
    torch.testing.assert_close(kspace_from_cfl(array), plane, rtol=1e-5, atol=1e-10)
    array[:, 1, 2] = 0
    refused(lambda: kspace_from_cfl(array, "x.cfl"), "x.cfl", "dimension 2")


def test_images_in_cfl_have_two_channels(tmp_path):
    image = noise(6, 4, 3)
    write_cfl(tmp_path / "i", image)
    images = read(tmp_path / "i.cfl", "image")
    np.testing.assert_array_equal(operators.to_complex(images).movedim(0, -1), image)
    write_cfl(tmp_path / "coils", noise(6, 4, 1, 3))
    refused(lambda: read(tmp_path / "coils.cfl", "image"), "coils.cfl", "image")


def test_cfl_files_that_cannot_be_read_are_refused(tmp_path):
    name = tmp_path / "bad"
    write_cfl(name, noise(6, 4))
    data, head = name.with_suffix(".cfl"), name.with_suffix(".hdr")
    data.write_bytes(data.read_bytes()[:-5])
    refused(lambda: read_cfl(name), data, "187 bytes", "192")
    for text in ("", "# Dimensions\n", "# Dimensions\n6 x\n", "# Dimensions\n6 0 1\n", "# Dimensions\n" + "1 " * 17):
        head.write_text(text)
        refused(lambda: read_cfl(name), head)
    head.unlink()
    refused(lambda: read_cfl(name), head, "no such file")
    write_cfl(name, noise(6, 4))
    data.unlink()
    refused(lambda: read_cfl(name), data, "no such file")
    write_cfl(name, noise(6, 4, 1, 2, 3))
    refused(lambda: read(data, "kspace"), data, "dimension 4 is 3")
    write_cfl(name, noise(6, 4, 2, *(1,) * 10, 2))
    refused(lambda: read(data, "kspace"), data, "2 and 13")
    refused(lambda: write_cfl(name, np.array(["a"])), data, "numbers")
    refused(lambda: write_cfl(name, np.ones((1,) * 17)), data, "16")


# Masks


def test_masks_go_to_cfl_and_back(tmp_path):
    mask = torch.arange(12) % 3 == 0
    write_mask_cfl(tmp_path / "mask", mask)
    array = read_cfl(tmp_path / "mask")
    assert array.shape == (1, 12) + (1,) * 14
    assert set(np.unique(array)) == {0, 1}
    assert torch.equal(read_mask_cfl(tmp_path / "mask", 12), mask)
    refused(lambda: read_mask_cfl(tmp_path / "mask", 13), "mask.cfl", "(12,)", "(13,)")
    refused(lambda: write_mask_cfl(tmp_path / "mask", torch.tensor([0.0, 0.5])), "mask.cfl", "0.5")
    write_cfl(tmp_path / "half", np.array([[0, 1, 0.5]]))
    refused(lambda: read_mask_cfl(tmp_path / "half", 3), "half.cfl", "binary")
    write_cfl(tmp_path / "plane", np.ones((3, 3)))
    refused(lambda: read_mask_cfl(tmp_path / "plane", 3), "plane.cfl", "dimensions")


def test_an_order_of_lines_goes_to_csv_and_back(tmp_path):
    path = tmp_path / "lines.csv"
    write_mask_csv(path, torch.tensor([16, 3, 31]), 32, [None, 4, 4], [None, 1 / 3, -2.5e-9])
    assert path.read_text().splitlines()[:2] == ["order,line,offset,step,entropy", "0,16,0,,"]
    order = read_mask_csv(path, 32)
    assert (order.lines, order.steps, order.entropy) == ((16, 3, 31), (None, 4, 4), (None, 1 / 3, -2.5e-9))
    assert [*order.mask().nonzero()[:, 0]] == [3, 16, 31]
    write_mask_csv(path, [5], 9)
    assert read_mask_csv(path, 9).steps == (None,)


def test_orders_of_lines_that_make_no_sense_are_refused(tmp_path):
    path = tmp_path / "lines.csv"
    for lines, changes in (((3, 3), {}), ((32,), {}), ((1,), {"steps": [-1]}), ((1,), {"entropy": [float("nan")]})):
        refused(lambda lines=lines, changes=changes: write_mask_csv(path, lines, 32, **changes), "order")
        assert not path.exists()
    refused(lambda: write_mask_csv(path, [1, 2], 32, steps=[1]), "1 steps")
    columns = "order,line,offset,step,entropy"
    for text in (
        "line\n3\n",
        "",
        f"{columns}\n0,3,-13\n",
        f"{columns}\n0,x,-13,,\n",
        f"{columns}\n1,3,-13,,\n",
        f"{columns}\n0,3,5,,\n",
        f"{columns}\n0,3,-13,,\n1,3,-13,,\n",
        f"{columns}\n0,3,-13,,inf\n",
    ):
        path.write_text(text)
        refused(lambda: read_mask_csv(path, 32), path)
    path.unlink()
    refused(lambda: read_mask_csv(path, 32), path)


# NIfTI and NumPy


def test_arrays_are_k_space_or_images_as_the_caller_says(tmp_path):
    kspace, mask = noise(3, 8, 6), np.array([0, 1, 1, 1, 1, 0])
    np.save(tmp_path / "a.npy", kspace)
    volume = read(tmp_path / "a.npy", "kspace")
    assert torch.equal(volume.kspace, torch.from_numpy(kspace)[None])
    assert volume.fully_sampled
    np.testing.assert_array_equal(operators.to_complex(read(tmp_path / "a.npy", "image")), kspace)
    np.savez(tmp_path / "a.npz", kspace=kspace[None].astype(np.complex128) * mask, mask=mask, image=kspace.real)
    volume = read(tmp_path / "a.npz", "kspace")
    assert volume.sampled.tolist() == [mask.astype(bool).tolist()]
    assert not volume.fully_sampled
    np.testing.assert_array_equal(read(tmp_path / "a.npz", "image")[:, 0], kspace.real)
    np.save(tmp_path / "u.npy", np.arange(48, dtype=np.uint8).reshape(8, 6))
    images = read(tmp_path / "u.npy", "image")
    assert (images.shape, images.dtype, images[0, 0, 7, 5].item()) == ((1, 1, 8, 6), torch.float32, 47)
    np.save(tmp_path / "swapped.npy", kspace.astype(">c8"))
    assert torch.equal(read(tmp_path / "swapped.npy", "kspace").kspace, torch.from_numpy(kspace)[None])


def test_nifti_volumes_are_slices_along_the_third_axis(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (7, 6, 4)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "v.nii.gz")
    images = read(tmp_path / "v.nii.gz", "image")
    assert images.shape == (4, 1, 7, 6)
    np.testing.assert_array_equal(images[:, 0].movedim(0, -1), data)
    kspace = noise(7, 6, 4, 2)
    nibabel.save(nibabel.Nifti1Image(kspace, np.eye(4)), tmp_path / "k.nii")
    volume = read(tmp_path / "k.nii", "kspace")
    np.testing.assert_array_equal(volume.kspace.permute(2, 3, 0, 1), kspace)
    assert volume.size == (7, 6)
    refused(lambda: read(tmp_path / "k.nii", "image"), "k.nii", "image", "(7, 6, 4, 2)")
    refused(lambda: read(tmp_path / "v.nii.gz", "kspace"), "v.nii.gz", "kspace", "uint8", "complex")


def test_arrays_that_cannot_be_read_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    for array, kind, mention in (
        (np.ones((8, 6)), "kspace", "complex"),
        (np.ones((8, 6), dtype=int), "kspace", "int64"),
        (noise(6), "kspace", "(6,)"),
        (noise(1, 1, 1, 8, 6), "kspace", "(1, 1, 1, 8, 6)"),
        (noise(0, 8, 6), "kspace", "(1, 0, 8, 6)"),
        (np.zeros((8, 6), np.complex64), "kspace", "zero"),
        (noise(8, 6) * np.inf, "kspace", "infinite"),
        (np.zeros((8, 6)), "image", "zero"),
        (np.full((8, 6), np.nan), "image", "NaN"),
        (np.ones((2, 3, 8, 6)), "image", "(2, 3, 8, 6)"),
        (np.full((8, 6), "a"), "image", "numbers"),
        (np.array([None]), "image", "allow_pickle"),
    ):
        np.save(path, array, allow_pickle=True)
        refused(lambda kind=kind: read(path, kind), path, mention)
    np.save(path, noise(8, 6))
    path.write_bytes(path.read_bytes()[:-9])
    refused(lambda: read(path, "kspace"), path)
    np.savez(tmp_path / "b.npz", one=noise(8, 6), two=noise(8, 6))
    refused(lambda: read(tmp_path / "b.npz", "kspace"), "b.npz", "kspace", "one, two")
    for mask, mention in ((np.ones(5), "(5,)"), (np.array([0, 1, 2, 0, 0, 0]), "binary"), (np.full(6, np.nan), "nan")):
        np.savez(tmp_path / "b.npz", kspace=noise(8, 6), mask=mask)
        refused(lambda: read(tmp_path / "b.npz", "kspace"), "b.npz", "mask", mention)
    whole = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[: len(whole) // 2])
    refused(lambda: read(tmp_path / "b.npz", "kspace"), "b.npz")
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((9, 9, 9)), np.eye(4)), tmp_path / "v.nii.gz")
    whole = (tmp_path / "v.nii.gz").read_bytes()
    for cut in (len(whole) // 2, 5, 0):
        (tmp_path / "v.nii.gz").write_bytes(whole[:cut])
        refused(lambda: read(tmp_path / "v.nii.gz", "image"), "v.nii.gz")


# What is refused of HDF5, and by the one entry


def test_volumes_that_cannot_be_read_are_refused(tmp_path):
    good, xml = noise(2, 64, 40), header()
    nan, infinite = good.copy(), good.copy()
    nan[1, 3, 3], infinite[0, 1, 1] = np.nan, np.inf
    half = np.full(40, 0.5)
    cases = (
        (None, {}, ("kspace", "ismrmrd_header")),
        (good, {"xml": False}, ("no array ismrmrd_header",)),
        (good, {"xml": "<a>"}, ("ismrmrd_header", "not XML")),
        (good, {"xml": xml.replace("<maximum>39</maximum>", "")}, ("ismrmrd_header", "maximum", "absent")),
        (good, {"xml": xml.replace("39", "many")}, ("ismrmrd_header", "maximum", "many")),
        (good, {"xml": header(center=-90)}, ("ismrmrd_header", "kspace_encoding_step_1", "40")),
        (good.real, {}, ("kspace", "float32", "complex")),
        (np.ones((2, 64, 40), dtype=np.int16), {}, ("kspace", "int16", "complex")),
        (good[0], {}, ("kspace", "(64, 40)", "3 or 4 axes")),
        (good[None, None], {}, ("kspace", "3 or 4 axes")),
        (good[:0], {}, ("kspace", "(0, 64, 40)")),
        (nan, {}, ("kspace", "NaN", "slice 1")),
        (infinite, {}, ("kspace", "infinite", "slice 0")),
        (good * 0, {}, ("kspace", "zero")),
        (good, {"mask": half}, ("mask", "binary", "0.5")),
        (good, {"mask": np.ones(39)}, ("mask", "(39,)", "(40,)")),
        (good, {"reconstruction_esc": np.ones((3, 32, 32))}, ("reconstruction_esc", "(3, 32, 32)")),
    )
    for number, (kspace, changes, mentions) in enumerate(cases):
        path = write_volume(tmp_path / f"{number}.h5", kspace, **changes)
        refused(lambda path=path: read_fastmri(path), path, *mentions)
    refused(lambda: read_fastmri(tmp_path / "none.h5"), "none.h5", "no such file")


def test_faint_k_space_is_not_taken_for_zero(tmp_path):
    """Squares of such samples are under the smallest float32."""
    path = write_volume(tmp_path / "file.h5", noise(2, 64, 40, scale=1e-30))
    assert read_fastmri(path).fully_sampled


def test_truncated_hdf5_is_refused(knee):
    whole = knee.read_bytes()
    for cut in (len(whole) // 2, 100, 0):
        knee.write_bytes(whole[:cut])
        for reader in (read_fastmri, read_ismrmrd, read_reference_slice, read):
            refused(lambda reader=reader: reader(knee), knee, "HDF5")


def test_the_one_entry_tells_formats_apart(knee, brain, tmp_path):
    for path in (knee, brain):
        assert torch.equal(read(path).kspace, read_fastmri(path).kspace)
        refused(lambda path=path: read(path, "image"), path, "image")
    for name in ("a.dcm", "a", "a.gz", "a.pt"):
        (tmp_path / name).write_bytes(b"x")
        refused(lambda name=name: read(tmp_path / name), name, ".h5", ".cfl", ".npy", ".nii.gz")
    np.save(tmp_path / "a.npy", noise(4, 4))
    refused(lambda: read(tmp_path / "a.npy"), "a.npy", "image or kspace")
    refused(lambda: read(tmp_path / "a.npy", "picture"), "picture", "image, kspace")
    for name in ("b.npy", "b.npz", "b.nii", "b.h5"):
        refused(lambda name=name: read(tmp_path / name, None if name == "b.h5" else "kspace"), name, "no such file")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["ismrmrd_header"] = header()
    refused(lambda: read(tmp_path / "c.h5"), "c.h5", "kspace", "ismrmrd_header", "dataset/data")


def test_k_space_that_does_not_fit_itself_is_refused():
    kspace = torch.from_numpy(noise(2, 1, 8, 6))
    lines = torch.ones(2, 6, dtype=torch.bool)
    KSpace(kspace, lines, (0, 6))
    for wrong in (
        lambda: KSpace(kspace[0], lines, (0, 6)),
        lambda: KSpace(kspace.to(torch.complex128), lines, (0, 6)),
        lambda: KSpace(kspace, lines[0], (0, 6)),
        lambda: KSpace(kspace, lines.float(), (0, 6)),
        lambda: KSpace(kspace, lines, (4, 4)),
        lambda: KSpace(kspace, lines, (0, 7)),
        lambda: KSpace(kspace, lines, (0, 6), torch.ones(3, 4, 4)),
    ):
        refused(wrong, "kspace")


# Real data


def test_the_real_slice_of_eight_coils():
    root = Path(os.environ.get("SZILARD_DATA", Path(__file__).parents[2].parent / "shared/data"))
    path = root / "mri" / "brain_8ch_poisson_ksp.npy"
    if not path.is_file():
        pytest.skip(f"no {path}: set SZILARD_DATA")
    volume = read(path, "kspace")
    assert volume.kspace.shape == (1, 8, 230, 180)
    assert volume.rss().max().item() == pytest.approx(1.0, abs=1e-5)
    assert volume.fraction == pytest.approx(0.1243, abs=5e-5)
    assert volume.kspace.abs().max().item() == pytest.approx(15.85, abs=5e-3)
    refused(volume.require_full, path, "12.43%")
