"""Ensembles from known equations, started from bred perturbations of the last training state."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from apps.chaos.forecasters.equations import Equations, known_equations
from apps.chaos.forecasters.forecaster import Ensemble, Fitting, Forecaster
from core.seeds import stream


class Bred(Forecaster):
    """Members start from the last training state and perturbations that have grown along the training series.

    Breeding (Toth and Kalnay 1993): random perturbations of size ``amplitude`` are added to a state of the training
    series; after ``cycle`` samples of the model the differences from its unperturbed run are scaled back to that size
    and added to the state that the series shows then; and so on up to its last state. What is left are the directions
    in which errors have grown. Each is then multiplied by a standard Gaussian number, for its sign means nothing: the
    root mean square of the perturbations is ``amplitude``, which should be the error of the last state. The spread of
    the members grows at the rate of the largest Lyapunov exponent as long as it is small.
    """

    physical: ClassVar = True

    kind: Literal["bred"] = "bred"
    parameter_error: float = Field(default=0.0, ge=0, le=0.2)
    """Relative error of every parameter of the equations, its sign drawn from the seed of the series."""
    amplitude: PositiveFloat = 1e-3
    """Root mean square over channels of a perturbation, in units of the series."""
    cycle: PositiveInt = 25
    """Samples between two rescalings."""
    cycles: PositiveInt = 16
    """Most rescalings; fewer for a short series."""
    members: PositiveInt = 20
    """Of the ensemble whose mean a single forecast is."""

    @property
    def shortest(self) -> int:
        """One cycle, and its start."""
        return max(12, self.cycle + 1)

    def fit(self, train: Tensor, fitting: Fitting) -> BredFitted:
        """Take the equations; see ``Forecaster.fit``.

        Raises:
            InputError: no equations, or ones that do not fit the series (see ``known_equations``).
        """
        self.check(train.shape[1])
        equations = known_equations(self.kind, train, fitting, self.parameter_error)
        cycles = min(self.cycles, (train.shape[1] - 1) // self.cycle)
        analyses = train[:, -1 - cycles * self.cycle :: self.cycle]
        return BredFitted(self, equations, analyses, fitting.seeds)


class BredFitted(Ensemble):
    """Equations, and the states ``(G, cycles + 1, D)`` of the training series at which perturbations are rescaled."""

    def __init__(self, settings: Bred, equations: Equations, analyses: Tensor, seeds: tuple[int, ...]) -> None:
        self.settings, self.equations, self.analyses, self.seeds = settings, equations, analyses, seeds
        self.notes = {}

    def forecast(self, horizon: int) -> Tensor:
        """Mean of ``members`` futures, the same at every call; see ``Fitted.forecast``."""
        shape = (self.settings.members, self.analyses.shape[2] + 1)
        generators = [torch.Generator().manual_seed(stream(seed, "bred forecast")) for seed in self.seeds]
        noise = [torch.randn(shape, generator=g, dtype=torch.float64) for g in generators]
        return self._futures(torch.stack(noise), horizon).mean(1)

    def sample(self, horizon: int, members: int, generator: torch.Generator) -> Tensor:
        """See ``Ensemble.sample``."""
        shape = (len(self.analyses), members, self.analyses.shape[2] + 1)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
        return self._futures(noise, horizon)

    def _futures(self, noise: Tensor, horizon: int) -> Tensor:
        """``(G, M, horizon, D)`` from Gaussian numbers ``(G, M, D + 1)``: first perturbations, last factors."""
        noise = noise.to(self.analyses)
        bred = self._scaled(noise[..., :-1])
        for state in self.analyses[:, :-1].unbind(1):
            control = state[:, None]
            both = self.equations.path(torch.cat([control, control + bred], 1), self.settings.cycle)[:, :, -1]
            bred = self._scaled(both[:, 1:] - both[:, :1])
        return self.equations.path(self.analyses[:, -1:] + noise[..., -1:] * bred, horizon)

    def _scaled(self, perturbations: Tensor) -> Tensor:
        size = perturbations.square().mean(-1, keepdim=True).sqrt()
        return self.settings.amplitude * perturbations / size
