"""Operators: energy, adjoints, conventions of the Fourier transform at odd sizes, round trips, refusals."""

import numpy as np
import pytest
import torch

from core.errors import InputError
from simulators.mri.coils import coil_maps
from simulators.mri.operators import (
    Columns,
    KSpaceLines,
    KSpacePoints,
    MulticoilLines,
    Pixels,
    fft2c,
    ifft2c,
    to_channels,
    to_complex,
)

SIZES = [(8, 6), (7, 9), (6, 7)]


def operators(height, width):
    maps = coil_maps(3, height, width).to(torch.complex128)
    return [
        Pixels((1, height, width)),
        Pixels((2, height, width)),
        Columns((1, height, width)),
        Columns((2, height, width)),
        KSpaceLines((2, height, width)),
        KSpacePoints((2, height, width)),
        MulticoilLines((2, height, width), maps=maps),
    ]


EACH = [
    pytest.param(operator, id=f"{type(operator).__name__}{operator.shape}")
    for size in SIZES
    for operator in operators(*size)
]


def images(operator, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *operator.shape, generator=generator, dtype=torch.float64)


def samples_of(operator):
    y = operator.forward(images(operator))
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)


@pytest.mark.parametrize("operator", EACH)
def test_energy_is_kept(operator):
    x = images(operator)
    y = operator.forward(x)
    assert y.shape[:2] == (3, operator.actions)
    torch.testing.assert_close(y.square().sum((1, 2)), x.square().sum((1, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("operator", EACH)
def test_inner_products_move_across_the_adjoint(operator):
    x, y = images(operator), samples_of(operator)
    left, right = (operator.forward(x) * y).sum(), (x * operator.adjoint(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operator", EACH)
def test_the_adjoint_of_all_samples_is_the_image(operator):
    x = images(operator)
    torch.testing.assert_close(operator.adjoint(operator.forward(x)), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("operator", [p for p in EACH if p.values[0].unitary])
def test_unitary_operators_also_give_back_samples(operator):
    y = samples_of(operator)
    torch.testing.assert_close(operator.forward(operator.adjoint(y)), y, rtol=0, atol=1e-10)


def test_coils_are_not_unitary():
    operator = operators(8, 6)[-1]
    y = samples_of(operator)
    assert not operator.unitary
    assert (operator.forward(operator.adjoint(y)) - y).abs().max() > 0.1


@pytest.mark.parametrize("operator", EACH)
def test_samples_and_components_round_trip(operator):
    y = operator.forward(images(operator))
    samples = operator.samples(y)
    assert samples.is_complex() == isinstance(operator, KSpaceLines | KSpacePoints | MulticoilLines)
    assert torch.equal(operator.components(samples), y)
    # The layout does not depend on how many axes lead.
    assert torch.equal(operator.components(operator.samples(y[:, 2])), y[:, 2])


@pytest.mark.parametrize("size", SIZES)
def test_dc_lies_at_the_centre(size):
    height, width = size
    constant = torch.zeros(1, 2, height, width, dtype=torch.float64)
    constant[:, 0] = 1
    expected = torch.zeros(height, width, dtype=torch.complex128)
    expected[height // 2, width // 2] = (height * width) ** 0.5
    torch.testing.assert_close(fft2c(to_complex(constant))[0], expected)
    for operator in operators(height, width)[4:]:
        energy = operator.forward(constant)[0].square().sum(-1)
        if isinstance(operator, MulticoilLines):  # the maps spread DC a little
            assert energy.argmax() == operator.center
        else:
            assert (energy > 1e-20).nonzero().tolist() == [[operator.center]]


@pytest.mark.parametrize("size", SIZES)
def test_the_transform_is_numpys(size):
    x = to_complex(images(KSpaceLines((2, *size))))
    axes = (-2, -1)
    expected = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x.numpy(), axes=axes), norm="ortho"), axes=axes)
    np.testing.assert_allclose(fft2c(x), expected, atol=1e-12)
    np.testing.assert_allclose(ifft2c(fft2c(x)), x, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_the_transform_is_fastmris(size):
    pytest.importorskip("core.torchvision_guard").shield()
    fastmri = pytest.importorskip("fastmri")
    x = to_complex(images(KSpaceLines((2, *size))))
    theirs = torch.view_as_complex(fastmri.fft2c(torch.view_as_real(x)))
    torch.testing.assert_close(fft2c(x), theirs, atol=1e-12, rtol=0)


def test_channels_and_complex_round_trip():
    x = images(KSpaceLines((2, 5, 4)))
    assert torch.equal(to_channels(to_complex(x)), x)


@pytest.mark.parametrize("size", SIZES)
def test_actions_are_what_they_are_called(size):
    height, width = size
    x = images(Pixels((2, height, width)))
    k = fft2c(to_complex(x))
    i, j = height - 2, 3
    assert torch.equal(Pixels((2, height, width)).forward(x)[:, i * width + j], x[:, :, i, j])
    assert torch.equal(Columns((2, height, width)).forward(x)[:, j], x[:, :, :, j].transpose(1, 2).flatten(1))
    lines, points = KSpaceLines((2, height, width)), KSpacePoints((2, height, width))
    assert torch.equal(lines.samples(lines.forward(x))[:, j], k[:, :, j])
    assert torch.equal(points.samples(points.forward(x))[:, i * width + j, 0], k[:, i, j])
    coils = operators(height, width)[-1]
    expected = fft2c(to_complex(x)[:, None] * coils.maps)[..., j]
    torch.testing.assert_close(coils.samples(coils.forward(x))[:, j], expected)


def test_impossible_operators_are_refused():
    for kind in (KSpaceLines, KSpacePoints):
        with pytest.raises(InputError, match="two channels"):
            kind((1, 8, 8))
    with pytest.raises(InputError, match=r"maps.*\(coils, H, W\)"):
        MulticoilLines((2, 8, 8))
    with pytest.raises(InputError, match=r"maps.*complex"):
        MulticoilLines((2, 8, 8), maps=torch.ones(2, 8, 8))
    with pytest.raises(InputError, match=r"maps of shape \(3, 8, 6\)"):
        MulticoilLines((2, 8, 8), maps=coil_maps(3, 8, 6))
