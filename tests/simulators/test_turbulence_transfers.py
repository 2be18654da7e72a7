import math
from functools import partial

import pytest
import torch

from simulators.turbulence.closures import FunctionClosure, GradientModel, Leith, NoClosure, Smagorinsky, closure
from simulators.turbulence.diagnostics.apriori import apriori, correlation
from simulators.turbulence.diagnostics.transfers import (
    backscatter_fraction,
    energy_transfer,
    enstrophy_transfer,
    least_stress,
    transfer_spectra,
    transfers,
    vorticity_flux,
)
from simulators.turbulence.flow import Flow, stress_curl
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.snapshots import initial_fields
from simulators.turbulence.subgrid import subgrid

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def truth():
    grid = Grid(128)
    return subgrid(grid, grid.to_spectral(torch.from_numpy(initial_fields([1, 2, 3], 128))), 32)


def mean(field):
    return field.mean((-2, -1))


def test_means_are_those_of_psi_pi_and_omega_pi(truth):
    flow = truth.flow
    for stress in (truth.stress, GradientModel(4).stress(flow), Leith(local=True).stress(flow)):
        pi = flow.grid.to_physical(stress_curl(flow.grid, *stress))
        close(mean(energy_transfer(flow, stress)), mean(flow.psi * pi))
        close(mean(enstrophy_transfer(flow, stress)), mean(flow.vorticity * pi))


def test_a_stress_from_its_term_alone(truth):
    grid = truth.flow.grid
    least = least_stress(grid, truth.pi_hat)
    close(stress_curl(grid, *least), truth.pi_hat)
    tau11, tau12, tau22 = truth.stress
    size = mean((tau11 - tau22).square() / 2 + 2 * tau12.square())
    assert (mean(2 * least[0].square() + 2 * least[1].square()) < size).all()
    model = Smagorinsky()
    term = model(truth.flow)
    for a, b in zip(
        least_stress(grid, term.viscosity * grid.k2 * truth.flow.vorticity_hat), model.stress(truth.flow), strict=True
    ):
        close(a, b)


def test_the_flux_of_vorticity_of_the_exact_stress():
    grid = Grid(64)
    noise = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spectrum = grid.to_spectral(noise) * grid.resolved / (1 + grid.k2)
    truth = subgrid(grid, spectrum, 24)

    def fluxes(vorticity_hat):
        fine = Flow(Grid(160), resample(vorticity_hat, 160))
        products = torch.stack([u * fine.vorticity for u in fine.velocity])
        return resample(fine.grid.to_spectral(products), 24)

    les = truth.flow.grid
    gain = truth.filter.transfer(les)
    expected = les.to_physical(gain * fluxes(spectrum) - fluxes(truth.flow.vorticity_hat))
    close(torch.stack(vorticity_flux(les, truth.stress)), expected)


def test_a_constant_viscosity_dissipates_everywhere(truth):
    flow = truth.flow
    stress = Leith().stress(flow)
    viscosity = Leith().viscosity(flow)
    w_x, w_y = flow.vorticity_gradient
    close(energy_transfer(flow, stress), viscosity * flow.strain_norm**2)
    close(mean(enstrophy_transfer(flow, stress)), mean(viscosity * (w_x**2 + w_y**2)))
    assert (backscatter_fraction(energy_transfer(flow, stress)) == 0).all()
    assert (backscatter_fraction(-energy_transfer(flow, stress)) == 1).all()


def test_the_second_order_gradient_model_moves_no_energy_in_two_dimensions(truth):
    stress = GradientModel(2).stress(truth.flow)
    largest = max(tau.abs().max() for tau in stress) * truth.flow.strain_norm.max()
    assert energy_transfer(truth.flow, stress).abs().max() < 1e-12 * largest
    assert mean(enstrophy_transfer(truth.flow, stress)).min() > 0


def test_spectra_add_up_to_the_means(truth):
    flow, inside = truth.flow, truth.flow.grid.k2 <= 15**2  # corners are in no shell
    pi_hat = truth.pi_hat * inside
    pi = flow.grid.to_physical(pi_hat)
    energy, enstrophy = transfer_spectra(flow, pi_hat)
    close(energy.sum(-1), mean(flow.psi * pi))
    close(enstrophy.sum(-1), mean(flow.vorticity * pi))
    wave = torch.cos(3 * flow.grid.x)[:, None].expand(1, 32, 32)
    single = Flow(flow.grid, flow.grid.to_spectral(wave))
    energy, enstrophy = transfer_spectra(single, 2 * single.vorticity_hat)
    close(enstrophy[0], torch.eye(16, dtype=torch.float64)[3])  # 2 <cos^2> = 1
    close(energy, enstrophy / 9)


def test_transfers_of_a_term_and_of_its_stress_are_one_record(truth):
    flow, model = truth.flow, Smagorinsky()
    of_term, of_stress = transfers(flow, model(flow)), transfers(flow, model.stress(flow))
    assert dict(of_term.sizes) == {"start": 3, "x": 32, "y": 32, "k": 16}
    for name in of_term:
        close(torch.from_numpy(of_term[name].values), torch.from_numpy(of_stress[name].values))
        assert of_term[name].attrs["units"] == "1"
    exact = transfers(flow, truth.stress)
    assert ((exact.P_Z_backscatter > 0.2) & (exact.P_Z_backscatter < 0.6)).all()
    assert (exact.P_Z_mean > 0).all()
    close(torch.from_numpy(exact.P_Z_mean.values), mean(enstrophy_transfer(flow, truth.stress)))


# A-priori


def test_the_truth_correlates_with_itself(truth):
    itself = apriori(FunctionClosure(lambda flow: truth.pi, "pi"), truth)
    assert itself.correlation_Pi.values == pytest.approx([1, 1, 1])
    assert itself.dissipation_P_Z.values == pytest.approx([1, 1, 1])
    assert itself.dissipation_P_tau.values == pytest.approx([1, 1, 1])
    opposite = apriori(FunctionClosure(lambda flow: -2 * truth.pi, "pi"), truth)
    assert opposite.correlation_Pi.values == pytest.approx([-1, -1, -1])
    assert opposite.dissipation_P_Z.values == pytest.approx([-2, -2, -2])
    assert itself.attrs["D"] == pytest.approx(4 * math.pi / 32)
    assert itself.attrs["filter"] == "gaussian"


def test_gradient_models_lead_eddy_viscosities_a_priori(truth):
    found = {name: apriori(closure(name), truth).mean() for name in ("gm2", "gm4", "leith", "smag")}
    assert found["gm4"].correlation_Pi > found["gm2"].correlation_Pi > found["leith"].correlation_Pi > 0
    assert found["gm2"].correlation_P_Z > 0.9
    assert found["leith"].correlation_Pi == pytest.approx(float(found["smag"].correlation_Pi))  # both are lap omega
    assert math.isnan(apriori(closure("gm2"), truth).correlation_P_tau[0])
    assert math.isnan(apriori(NoClosure(), truth).correlation_Pi[0])


def test_a_correlation_is_that_of_the_covariance_matrix(truth):
    a, b = truth.flow.vorticity, truth.flow.psi + 3
    expected = [torch.corrcoef(torch.stack((x.flatten(), y.flatten())))[0, 1] for x, y in zip(a, b, strict=True)]
    close(correlation(a, b), torch.stack(expected))
