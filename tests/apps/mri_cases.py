"""Small mixtures, subjects that they know, and generators: what the tests of adaptive acquisition start from."""

import math

import torch

from core.diffusion.mixture import GaussianMixturePrior
from simulators.mri.operators import KSpaceLines
from simulators.mri.scanner import Scanner

SHAPE = (2, 16, 16)
OPERATOR = KSpaceLines(SHAPE)
LINES = OPERATOR.actions


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def luck(count, first=0):
    return [seeded(100 + first + i) for i in range(count)]


def mixture(shape=SHAPE, components=3, rank=3, residual=0.01, spread=2.0, seed=0, kind=GaussianMixturePrior):
    """Clusters that are long in a few directions, each of another length."""
    g, d = seeded(seed), math.prod(shape)
    basis = torch.linalg.qr(torch.randn(components, d, rank, generator=g))[0]
    lengths = residual + spread * (0.1 + torch.rand(components, rank, generator=g))
    weights = torch.full((components,), 1 / components)
    means = 0.3 * torch.randn(components, d, generator=g)
    return kind(shape, weights, means, basis, lengths, torch.full((components,), residual))


def subjects(count=2, prior=None, seed=1):
    return (prior or mixture()).draw(count, seeded(seed))


def nothing(count=2, actions=LINES):
    return torch.zeros(count, actions, dtype=torch.bool)


def center(count=2):
    mask = nothing(count)
    mask[:, OPERATOR.center] = True
    return mask


def scanner(count=2, operator=OPERATOR, target=None, **more):
    return Scanner(operator, subjects(count) if target is None else target, **more)
