"""The reference spectrum: from snapshots, or from a file that says the same."""

import numpy as np
import pytest
import torch

from apps.turbulence.learning import Agents
from apps.turbulence.scenario import Scenario
from apps.turbulence.snapshots import given, reference_spectra
from core.errors import InputError


@pytest.fixture(scope="module")
def snapshots():
    scenario = Scenario()
    return given(scenario.flow, scenario.snapshots)


def written(path, spectrum, first=0):
    rows = [f"{k} {float(value):.12e}" for k, value in enumerate(spectrum) if k >= first]
    path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.mark.parametrize("first", [0, 1])
def test_a_file_of_the_snapshots_spectrum_is_the_snapshots_spectrum(tmp_path, snapshots, first):
    own = reference_spectra(Scenario(), snapshots).mean((0, 1))
    file = written(tmp_path / "enstrophy_spectrum_kolmogorov4_DNS128_xy.dat", own, first)
    scenario = Scenario(spectrum=file)
    torch.testing.assert_close(reference_spectra(scenario, snapshots).mean((0, 1)), own, rtol=1e-10, atol=0)
    worlds = [Agents().world(s, snapshots) for s in (Scenario(), scenario)]
    torch.testing.assert_close(worlds[0].reference, worlds[1].reference)


def test_a_file_replaces_the_spectrum_and_nothing_else(tmp_path, snapshots):
    own = reference_spectra(Scenario(), snapshots).mean((0, 1))
    scenario = Scenario(spectrum=written(tmp_path / "enstrophy_spectrum_mine_DNS128_xy.dat", 1.2 * own))
    found = reference_spectra(scenario, snapshots)
    assert found.shape == reference_spectra(Scenario(), snapshots).shape
    torch.testing.assert_close(found.mean((0, 1)), 1.2 * own, rtol=1e-9, atol=0)


def test_files_that_cannot_be_the_reference_are_refused(tmp_path, snapshots):
    own = reference_spectra(Scenario(), snapshots).mean((0, 1))
    cases = {
        "must be within a factor 2|factor 2": 5 * own,
        "must reach": own[:10],
        "must be above 0": torch.where(torch.arange(16) == 5, -1.0, own),
    }
    for i, (message, spectrum) in enumerate(cases.items()):
        file = written(tmp_path / f"enstrophy_spectrum_{i}_DNS128_xy.dat", spectrum)
        with pytest.raises(InputError, match=message):
            reference_spectra(Scenario(spectrum=file), snapshots)
    file = written(tmp_path / "enstrophy_spectrum_mine_DNS128_xy.dat", own)
    with pytest.raises(InputError, match="energy spectrum need snapshots"):
        Agents(reward="k1").world(Scenario(spectrum=file), snapshots)
    with pytest.raises(InputError, match="no such file"):
        reference_spectra(Scenario(spectrum=str(tmp_path / "absent.dat")), snapshots)


def test_one_file_cannot_stand_for_two_axes():
    with pytest.raises(ValueError, match="axis = stacked"):
        Scenario(spectrum="any", axis="stacked")


def test_the_coarse_band_holds_less_than_the_full_one(snapshots):
    ratio = (reference_spectra(Scenario(), snapshots, band="les") / reference_spectra(Scenario(), snapshots)).mean(
        (0, 1)
    )
    assert np.all(np.diff(ratio[1:].numpy()) < 0.02)
    assert float(ratio[15]) == pytest.approx(0.69, abs=0.03)
