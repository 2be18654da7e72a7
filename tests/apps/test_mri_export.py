"""Masks out of a study: what the files say is what was acquired, for every kind of method."""

import numpy as np
import pytest
import xarray as xr

from apps.mri.export import export_masks
from core.errors import InputError
from simulators.mri.readers import read_cfl, read_mask_cfl, read_mask_csv

WIDTH = 12
FIRST = WIDTH // 2
ORDERS = {
    "ads": [[5, 7, 2], [5, 4, 2], [7, 5, -1], [5, 7, 10]],  # the third subject stopped before its budget
    "pg": [[1, 2, 3], [1, 2, 4], [1, 2, 5], [1, 2, 7]],  # a policy, which has no scores
    "lowpass": [[-1, -1, -1]] * 4,  # a fixed mask, which has no order
}


def scenario(method="ads", *, lines=WIDTH, part=2):
    """What a study keeps of one method."""
    order = np.array(ORDERS[method])
    mask = np.zeros((4, WIDTH), np.int8)
    mask[:, FIRST] = 1
    for i, row in enumerate(order):
        mask[i, row[row >= 0]] = 1
    if method == "lowpass":
        mask[:, FIRST - 2 : FIRST + 2] = 1
    scores = np.random.default_rng(0).random((4, 3, WIDTH)) + 0.5
    data = {
        "mask": (("subject", "line"), mask),
        "acq_order": (("subject", "acquisition"), order),
        "acq_step": (("acquisition",), np.array([2, 9, 16])),
        "line_entropy": (("subject", "acquisition", "line"), scores * (np.nan if method == "pg" else 1)),
        "recon": (("subject", "part", "y", "x"), np.zeros((4, part, 5, lines))),
    }
    return xr.Dataset(data, {"subject": [40, 41, 42, 43]})


def whole(operator="kspace_lines", **options):
    methods = [scenario(name, **options) for name in ORDERS]
    data = xr.concat(methods, xr.Variable("method", list(ORDERS))).expand_dims(budget=[4], seed=[0])
    return data.assign_attrs(operator=operator)


@pytest.fixture
def study(tmp_path):
    """A finished study of two scenarios of k-space lines and one of another measurement."""
    folder = tmp_path / "study"
    folder.mkdir()
    groups = {"/lines": whole(), "/also": whole(), "/pixels": whole("pixels", part=1), "/columns": whole("columns")}
    xr.DataTree.from_dict(groups).to_netcdf(folder / "results.nc", engine="h5netcdf")
    return folder


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_every_subject_of_every_scenario_of_lines_is_written_under_its_number(study, tmp_path):
    assert export_masks(study, tmp_path / "out") == 2 * (4 + 1)
    stems = [f"subject_{i:04d}" for i in (40, 41, 42, 43)] + ["population"]
    wanted = [f"{s}/{stem}{end}" for s in ("lines", "also") for stem in stems for end in (".csv", ".cfl", ".hdr")]
    assert files(tmp_path / "out") == sorted(wanted)
    assert export_masks(study, tmp_path / "one", scenario="also") == 5
    assert {name.split("/")[0] for name in files(tmp_path / "one")} == {"also"}


@pytest.mark.parametrize("method", ORDERS)
def test_csv_and_cfl_come_back_as_the_mask_of_the_subject(study, tmp_path, method):
    export_masks(study, tmp_path / "out", method=method)
    data = scenario(method)
    for i, number in enumerate((40, 41, 42, 43)):
        stem = tmp_path / "out" / "lines" / f"subject_{number:04d}"
        mask = data["mask"].values[i] > 0
        order = read_mask_csv(stem.with_suffix(".csv"), WIDTH)
        assert np.array_equal(order.mask().numpy(), mask)
        assert np.array_equal(read_mask_cfl(stem, WIDTH).numpy(), mask)
        assert read_cfl(stem).shape == (1, WIDTH) + (1,) * 14
        chosen = [line for line in ORDERS[method][i] if line >= 0]
        held = sorted(set(np.flatnonzero(mask)) - set(chosen))
        assert list(order.lines) == [*held, *chosen]  # what was held from the start comes first


def test_steps_and_scores_are_those_of_the_choice(study, tmp_path):
    export_masks(study, tmp_path / "out", scenario="lines")
    scores = scenario()["line_entropy"].values
    for i, number in enumerate((40, 41, 42, 43)):
        order = read_mask_csv(tmp_path / "out" / "lines" / f"subject_{number:04d}.csv", WIDTH)
        chosen = [line for line in ORDERS["ads"][i] if line >= 0]
        assert order.steps == (None, *(2, 9, 16)[: len(chosen)])
        assert order.entropy == (None, *(pytest.approx(scores[i, j, line]) for j, line in enumerate(chosen)))


def test_a_policy_without_scores_leaves_them_empty(study, tmp_path):
    export_masks(study, tmp_path / "out", scenario="lines", method="pg")
    order = read_mask_csv(tmp_path / "out" / "lines" / "subject_0040.csv", WIDTH)
    assert order.lines == (FIRST, 1, 2, 3)
    assert order.entropy == (None,) * 4


def test_the_population_mask_has_as_many_lines_as_the_budget_the_most_frequent_first(study, tmp_path):
    export_masks(study, tmp_path / "out", scenario="lines")
    order = read_mask_csv(tmp_path / "out" / "lines" / "population.csv", WIDTH)
    # 6 four times, 5 four times, 7 three times, 2 twice; where two are as frequent, the lower first
    assert order.lines == (5, 6, 7, 2)
    assert np.array_equal(read_mask_cfl(tmp_path / "out" / "lines" / "population", WIDTH).numpy(), order.mask().numpy())


def test_a_population_of_equal_masks_is_that_mask(study, tmp_path):
    export_masks(study, tmp_path / "out", scenario="lines", method="lowpass")
    population = read_mask_cfl(tmp_path / "out" / "lines" / "population", WIDTH)
    assert np.flatnonzero(population.numpy()).tolist() == [FIRST - 2, FIRST - 1, FIRST, FIRST + 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "absent"}, "no scenario absent; there are lines, also, pixels, columns"),
        ({"scenario": "pixels"}, "pixels is not of k-space lines, which alone can be exported"),
        ({"scenario": "columns"}, "columns is not of k-space lines, which alone can be exported"),
        ({"method": "vds"}, "lines has no method vds; there are ads, pg, lowpass"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(study, tmp_path, options, message):
    with pytest.raises(InputError) as caught:
        export_masks(study, tmp_path / "out", **options)
    assert str(caught.value) == f"{study}: {message}"
    assert not (tmp_path / "out").exists()


def test_a_folder_without_results_or_with_damaged_ones_is_refused(study, tmp_path):
    with pytest.raises(InputError, match=r"has no results.nc; szilard mri run writes it$"):
        export_masks(tmp_path, tmp_path / "out")
    results = study / "results.nc"
    results.write_bytes(results.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"results.nc: damaged; szilard mri report"):
        export_masks(study, tmp_path / "out")


def test_a_study_without_lines_has_nothing_to_export(tmp_path):
    (tmp_path / "study").mkdir()
    tree = xr.DataTree.from_dict({"/pixels": whole("pixels", part=1)})
    tree.to_netcdf(tmp_path / "study" / "results.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="no scenario of k-space lines"):
        export_masks(tmp_path / "study", tmp_path / "out")
