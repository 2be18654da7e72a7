import math
from functools import partial

import numpy as np
import pytest
import torch

from core.errors import InputError
from simulators.turbulence.cases import case
from simulators.turbulence.closures import (
    CLOSURES,
    Backscatter,
    DynamicLeith,
    DynamicSmagorinsky,
    FunctionClosure,
    GradientModel,
    Leith,
    NoClosure,
    Smagorinsky,
    TensorDynamicSmagorinsky,
    closure,
    eddy_viscosity_term,
    largest_step,
    subgrid_term,
)
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid
from simulators.turbulence.snapshots import initial_fields
from simulators.turbulence.solver import Solver
from simulators.turbulence.subgrid import subgrid

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
EVERY = {
    **{name: (name, {}) for name in CLOSURES},
    "dleith, mean": ("dleith", {"clip": "mean_then_clip"}),
    "dleith, local": ("dleith", {"clip": "local"}),
    "dsmag, local, padded": ("dsmag", {"clip": "local", "padded": True}),
    "leith_local, padded": ("leith_local", {"padded": True}),
}


@pytest.fixture(scope="module", params=[32, 34])
def flow(request):
    if request.param == 32:
        grid = Grid(32)
        return Flow(grid, grid.to_spectral(torch.from_numpy(initial_fields([16, 17, 18], 32))))
    return random_flow(request.param)


def random_flow(n, copies=3, slope=2.0, dtype=torch.float64, seed=0):
    grid = Grid(n)
    noise = torch.randn(copies, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spectrum = grid.to_spectral(noise) * grid.resolved / (1 + grid.k2) ** (slope / 2)
    vorticity = grid.to_physical(spectrum)
    vorticity = 5 * (vorticity - vorticity.mean((-2, -1), keepdim=True)) / vorticity.std()
    return Flow(Grid(n, dtype), grid.to_spectral(vorticity).to(Grid(n, dtype).complex_dtype))


def pi(model, flow):
    """Pi on the modes that the solver keeps."""
    return subgrid_term(flow, model(flow)) * flow.grid.resolved


def product(flow, a_hat, b_hat):
    return (flow.grid.to_physical(a_hat) * flow.grid.to_physical(b_hat)).mean((-2, -1))


@pytest.mark.parametrize("padded", [False, True])
def test_a_constant_viscosity_is_nu_k2_omega(flow, padded):
    viscosity = torch.full_like(flow.vorticity, 0.3)
    expected = 0.3 * flow.grid.k2 * flow.vorticity_hat
    close(eddy_viscosity_term(flow, viscosity, padded).pi_hat, expected)


def test_a_padded_stress_is_free_of_aliases():
    # nu = 1 + cos(10 x), omega = cos(10 x): the products at 20 and 0 lie outside the band or have no curl.
    grid = Grid(32)
    wave = torch.cos(10 * grid.x)[:, None].expand(1, 32, 32)
    flow = Flow(grid, grid.to_spectral(wave))
    close(eddy_viscosity_term(flow, 1 + wave, padded=True).pi_hat, 100 * flow.vorticity_hat)
    aliased = eddy_viscosity_term(flow, 1 + wave).pi_hat - 100 * flow.vorticity_hat
    assert aliased[0, 12, 0].abs() > 1  # 20 appears as 32 - 20


def test_implicit_and_explicit_viscosity_agree_to_first_order_in_dt():
    fields = torch.from_numpy(initial_fields([16], 32))

    def difference(dt):
        ends = []
        for shape in ((1, 1, 1), (1, 32, 32)):
            model = FunctionClosure(lambda flow, shape=shape: torch.full(shape, 2e-3))
            solver = Solver(case("kolmogorov4"), 32, dt, closure=model, dtype=torch.float64)
            ends.append(solver.advance(solver.start(fields), round(0.1 / dt)).vorticity_hat)
        return (ends[0] - ends[1]).abs().pow(2).sum().sqrt() / ends[0].abs().pow(2).sum().sqrt()

    coarse, fine = difference(0.01), difference(0.005)
    assert coarse < 1e-2
    assert 1.8 < coarse / fine < 2.2


def test_smagorinsky_and_leith_are_their_formulas(flow):
    spacing = 2 * math.pi / flow.grid.n
    strain, gradient = flow.strain_norm, flow.gradient_norm
    rms = strain.square().mean((-2, -1), keepdim=True).sqrt()
    close(Smagorinsky(0.2).viscosity(flow), (0.2 * spacing) ** 2 * rms)
    close(Smagorinsky(0.2, local=True).viscosity(flow), (0.2 * spacing) ** 2 * strain)
    close(Leith(0.2).viscosity(flow), (0.2 * spacing) ** 3 * gradient.mean((-2, -1), keepdim=True))
    close(Leith(0.2, local=True).viscosity(flow), (0.2 * spacing) ** 3 * gradient)
    assert NoClosure()(flow).pi_hat is None


@pytest.mark.parametrize("name", ["smag", "smag_local", "leith", "leith_local", "dsmag", "dleith", "dsmag_tensor"])
def test_eddy_viscosities_take_energy(flow, name):
    model = closure(name)
    lost = product(flow, flow.psi_hat, pi(model, flow))
    s11, s12 = flow.strain
    close(lost, (4 * model.viscosity(flow) * (s11**2 + s12**2)).mean((-2, -1)))
    assert (lost > 0).all() or (name == "dsmag_tensor" and (lost >= 0).all())  # which is clipped to 0 at times


@pytest.mark.parametrize("kind", [Smagorinsky, Leith, lambda c, **o: Backscatter(0.2, c, **o)])
def test_a_constant_for_each_copy(flow, kind):
    constants = [0.1, 0.0, 0.3]
    together = pi(kind(torch.tensor(constants)), flow)
    for b, c in enumerate(constants):
        torch.testing.assert_close(together[b], pi(kind(c), flow)[b], rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match="2 values, the batch has 3 copies"):
        kind(torch.tensor([0.1, 0.2]))(flow)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("kind", [Smagorinsky, Leith, Backscatter])
def test_impossible_constants_are_refused(kind, value):
    with pytest.raises(InputError, match=r"constant = .*: must be at least 0 and finite"):
        kind(value)
    with pytest.raises(InputError, match="constant = "):
        kind(torch.tensor([0.1, value]))
    with pytest.raises(InputError, match="must be a number or a tensor"):
        kind(torch.tensor(0.1))


def test_largest_step():
    grid = Grid(32)
    viscosity = torch.tensor([0.0, 1e-3, -4e-3], dtype=torch.float64).view(3, 1, 1).expand(3, 32, 32)
    limits = [math.inf, 2 / (1e-3 * 450), 2 / (4e-3 * 450)]  # k_max^2 = 15^2 + 15^2
    assert largest_step(grid, viscosity).tolist() == pytest.approx(limits)


# Dynamic models


def by_definition(flow, chi, power):
    """L M and M M written out, field by field."""
    grid, spacing = flow.grid, 4 * math.pi / flow.grid.n
    inside = (grid.kx.abs() < grid.n / 4) & (grid.ky.abs() < grid.n / 4)

    def test_filter(field):
        return torch.fft.irfft2(torch.fft.rfft2(field) * inside, s=field.shape[-2:])

    coarse = Flow(grid, flow.vorticity_hat * inside)
    leonard = test_filter(flow.advection) - coarse.advection
    model = spacing**power * test_filter(chi * flow.laplacian)
    model = model - (2 * spacing) ** power * test_filter(chi) * coarse.laplacian
    return leonard * model, model**2


def test_dynamic_coefficients_are_their_formulas(flow):
    spacing = 4 * math.pi / flow.grid.n
    mean = partial(torch.mean, dim=(-2, -1))
    for kind, chi, power, scale in (
        (DynamicSmagorinsky, flow.strain_norm, 2, mean(flow.strain_norm**2).sqrt()),
        (DynamicLeith, flow.gradient_norm, 3, mean(flow.gradient_norm)),
    ):
        lm, mm = by_definition(flow, chi, power)
        local = lm.clamp(min=0) / mean(mm)[:, None, None]
        close(kind("local").coefficient(flow), local)
        close(kind("local").viscosity(flow), local * spacing**power * scale[:, None, None])
        close(kind("mean_then_clip").coefficient(flow), mean(lm).clamp(min=0) / mean(mm))
        close(kind().coefficient(flow), mean(local))
        close(kind().viscosity(flow)[:, 0, 0], mean(local) * spacing**power * scale)


def test_the_tensor_form_is_its_formula(flow):
    grid, spacing = flow.grid, 4 * math.pi / flow.grid.n
    inside = (grid.kx.abs() < grid.n / 4) & (grid.ky.abs() < grid.n / 4)

    def test_filter(field):
        return torch.fft.irfft2(torch.fft.rfft2(field) * inside, s=field.shape[-2:])

    coarse = Flow(grid, flow.vorticity_hat * inside)
    s11, s12 = flow.strain
    t11, t12 = coarse.strain
    strain, coarse_strain = ((s11, s12), (s12, -s11)), ((t11, t12), (t12, -t11))
    norm = (s11**2 + 2 * s12**2 + s11**2).sqrt()
    trace = sum(test_filter(u * u) - ub * ub for u, ub in zip(flow.velocity, coarse.velocity, strict=True))
    lm = mm = 0
    for i in range(2):
        for j in range(2):
            leonard = test_filter(flow.velocity[i] * flow.velocity[j]) - coarse.velocity[i] * coarse.velocity[j]
            leonard = leonard - (i == j) * trace / 2
            model = 2 * spacing**2 * test_filter(norm * strain[i][j])
            model = model - 2 * (2 * spacing) ** 2 * test_filter(norm) * coarse_strain[i][j]
            lm, mm = lm + leonard * model, mm + model**2
    expected = (lm.mean((-2, -1)) / mm.mean((-2, -1))).clamp(min=0)
    close(TensorDynamicSmagorinsky().coefficient(flow), expected)
    scale = norm.square().mean((-2, -1)).sqrt()
    close(TensorDynamicSmagorinsky().viscosity(flow)[:, 0, 0], expected * spacing**2 * scale)


@pytest.mark.parametrize("n", [32, 64])
def test_dynamic_models_dissipate_on_filtered_turbulence(n):
    grid = Grid(128)
    spectrum = grid.to_spectral(torch.from_numpy(initial_fields(range(1, 9), 128)))
    filtered = subgrid(grid, spectrum, n).flow
    for kind in (DynamicSmagorinsky, DynamicLeith, TensorDynamicSmagorinsky):
        assert kind("mean_then_clip").coefficient(filtered).mean() > 0


def test_a_flow_at_rest_has_no_eddy_viscosity():
    grid = Grid(32, torch.float32)
    rest = Flow(grid, torch.zeros(2, 32, 17, dtype=torch.complex64))
    for name, options in EVERY.values():
        assert (pi(closure(name, **options), rest) == 0).all(), name


def test_an_unknown_clip_is_refused():
    with pytest.raises(InputError, match="clip = 'none': must be one of positive_product, mean_then_clip, local"):
        DynamicLeith("none")


# Gradient models and backscatter


@pytest.mark.parametrize(("order", "gain"), [(2, 16), (4, 64)])
def test_gradient_models_are_the_series_of_the_gaussian_filter(order, gain):
    flow = random_flow(32)
    smooth = Flow(flow.grid, flow.vorticity_hat * (flow.grid.k2 <= 9))

    def error(width):
        truth = subgrid(smooth.grid, smooth.vorticity_hat, 32, width=width * smooth.grid.spacing)
        exact, model = truth.stress, GradientModel(order, width).stress(truth.flow)
        return max((a - b).abs().max() for a, b in zip(exact, model, strict=True))

    assert gain * 0.9 < error(0.8) / error(0.4) < gain * 1.1


def test_the_budget_of_backscatter_is_exact(flow):
    model = Backscatter(0.3, torch.tensor([0.0, 0.4, 0.9]))
    sink, anti = (c[:, 0, 0] for c in model.coefficients(flow))
    gradient, enstrophy = flow.gradient_norm.square().mean((-2, -1)), flow.vorticity.square().mean((-2, -1))
    rms = flow.strain_norm.square().mean((-2, -1)).sqrt()
    close(sink, (0.3 * flow.grid.spacing) ** 4 * rms)
    returned = -anti * enstrophy
    torch.testing.assert_close(returned, torch.tensor([0, 0.4, 0.9]) * sink * gradient, rtol=1e-6, atol=0)
    close(product(flow, flow.psi_hat, pi(model, flow)), sink * gradient - returned)
    assert (product(flow, flow.vorticity_hat, pi(model, flow)) > 0).all()  # it always takes enstrophy


def test_backscatter_and_gradient_models_refuse():
    with pytest.raises(InputError, match="share = 1: must be at least 0 and below 1"):
        Backscatter(share=1.0)
    with pytest.raises(InputError, match="order = 3: must be 2 or 4"):
        GradientModel(3)
    with pytest.raises(InputError, match="width = 0: must be above 0"):
        GradientModel(width=0)


# Every closure


def turned(field):
    """The field after a quarter turn about the origin, omega'(x, y) = omega(y, -x)."""
    return field.transpose(-2, -1).flip(-2).roll(1, -2)


@pytest.mark.parametrize("which", EVERY)
def test_every_closure_turns_and_shifts_with_the_flow(flow, which):
    model, grid = closure(EVERY[which][0], **EVERY[which][1]), flow.grid
    for move in (turned, lambda field: field.roll((3, -5), (-2, -1))):
        moved = Flow(grid, grid.to_spectral(move(flow.vorticity)))
        before, after = (grid.to_physical(pi(model, each)) for each in (flow, moved))
        torch.testing.assert_close(move(before), after, rtol=0, atol=1e-9 * float(1 + before.abs().max()))


@pytest.mark.parametrize("which", EVERY)
def test_a_copy_does_not_depend_on_its_batch(flow, which):
    model = closure(EVERY[which][0], **EVERY[which][1])
    spectra = flow.vorticity_hat.clone()
    spectra[1] = math.nan
    together = pi(model, Flow(flow.grid, spectra))
    for b in (0, 2):
        close(together[b], pi(model, Flow(flow.grid, flow.vorticity_hat[b : b + 1]))[0])


@pytest.mark.parametrize("which", EVERY)
def test_single_precision_agrees_and_gradients_pass(which):
    model = closure(EVERY[which][0], **EVERY[which][1])
    double, single = random_flow(32), random_flow(32, dtype=torch.float32)
    expected = pi(model, double)
    got = pi(model, single)
    assert got.dtype == torch.complex64
    torch.testing.assert_close(got.to(torch.complex128), expected, rtol=0, atol=1e-5 * float(1 + expected.abs().max()))
    spectrum = double.vorticity_hat.clone().requires_grad_()
    pi(model, Flow(double.grid, spectrum)).abs().square().sum().backward()
    assert torch.isfinite(torch.view_as_real(spectrum.grad)).all()


def test_closures_by_name():
    assert isinstance(closure("leith", constant=0.3), Leith)
    assert closure("smag_local").local
    assert closure("gm4").order == 4
    with pytest.raises(InputError, match="closure = 'smagorinsky': must be one of none, smag, smag_local"):
        closure("smagorinsky")
    with pytest.raises(InputError, match="closure leith: has no option 'cl'; it takes constant, local, padded"):
        closure("leith", cl=0.2)
    with pytest.raises(InputError, match="closure none: has no option"):
        closure("none", constant=0.2)


# A user's function


def test_a_users_function_is_the_closure_it_imitates(flow):
    leith = Leith(0.2, local=True)
    close(FunctionClosure(leith.viscosity)(flow).pi_hat, leith(flow).pi_hat)
    close(FunctionClosure(leith.viscosity).viscosity(flow), leith.viscosity(flow))
    mean = FunctionClosure(Leith(0.2).viscosity)(flow)
    assert mean.pi_hat is None
    close(mean.viscosity, Leith(0.2).viscosity(flow))

    def damping(vorticity):
        return 0.1 * vorticity

    close(FunctionClosure(damping, "pi", "numpy")(flow).pi_hat, 0.1 * flow.vorticity_hat)
    close(FunctionClosure(lambda f: 0.1 * f.vorticity, "pi")(flow).pi_hat, 0.1 * flow.vorticity_hat)
    with pytest.raises(InputError, match="has no viscosity"):
        FunctionClosure(damping, "pi", "numpy").viscosity(flow)


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (lambda f: f.vorticity[0], {}, r"viscosity of shape .* must be \(3, \d+, \d+\) or \(3, 1, 1\)"),
        (lambda f: f.vorticity[:, :1, :1], {"returns": "pi"}, r"pi of shape \(3, 1, 1\), must be"),
        (lambda f: f.vorticity_hat, {"returns": "pi"}, "complex128, must be of real numbers"),
        (lambda f: 0.1, {}, "returned float, must be a tensor"),
        (lambda w: w / 0, {"kind": "numpy"}, "viscosity that is not finite in copy 0"),
        (lambda w: w.astype(str), {"kind": "numpy"}, "must be of real numbers"),
        (3, {}, "function = 3: must be callable"),
        (abs, {"returns": "stress"}, "returns = 'stress': must be one of viscosity, pi"),
        (abs, {"kind": "jax"}, "kind = 'jax': must be one of torch, numpy"),
    ],
)
def test_what_a_users_function_may_not_return(flow, function, options, says):
    with np.errstate(all="ignore"), pytest.raises(InputError, match=says) as refused:
        FunctionClosure(function, **options)(flow)
    assert "\n" not in str(refused.value)


def test_a_copy_that_has_blown_up_is_not_the_functions_fault(flow):
    spectra = flow.vorticity_hat.clone()
    spectra[1] = math.nan
    result = FunctionClosure(lambda f: f.vorticity, "pi")(Flow(flow.grid, spectra)).pi_hat
    assert torch.isfinite(result[0].real).all()
    assert not torch.isfinite(result[1].real).any()
