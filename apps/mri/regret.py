"""How far chosen masks are from the best there are: every subject's error under the exact posterior mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import xarray as xr
from torch import Tensor

from apps.mri.greedy_fixed import MaskErrors
from apps.mri.problem import MixtureSettings, Problem, prior_of
from apps.mri.runs import Acquire
from core.diffusion.exact_posterior import ExactPosterior
from core.diffusion.mixture import GaussianMixturePrior
from core.errors import InputError
from core.study import Context, Run

MOST = 20_000
"""Masks that a search through all of them may try."""


class Regret(Run):
    """Masks of several methods, the best mask of every subject and the clairvoyant's greedy one, reconstructed alike.

    The reconstruction is the exact posterior mean with its measured samples put in, so that only the choice of samples
    differs. The two references know the subject: no policy can, so their distance is what information would be worth.
    """

    problem: Problem
    """Where."""
    prior: MixtureSettings
    """Whose exact posterior mean reconstructs."""
    compared: tuple[Acquire, ...]
    """Runs whose masks are judged; all of the same subjects."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.problem.name} regret"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """NMSE (method, subject) of the compared masks, and (subject) of the greedy and the best ones."""
        shard = self.compared[0]
        target = self.problem.images.test(shard.first, shard.count).to(context.device)
        operator = self.problem.measurement((target.shape[1], target.shape[2], target.shape[3]))
        prior = prior_of(self.prior, self.problem.images, context)
        assert isinstance(prior, GaussianMixturePrior)
        errors = MaskErrors(ExactPosterior(prior, operator), target)
        energy = target.flatten(1).square().sum(1)
        initial = self.problem.mask_problem(operator, None, context.device).initial
        rows = []
        for i in range(len(self.compared)):
            masks = torch.as_tensor(inputs[f"compared.{i}"]["mask"].values > 0, device=context.device)
            rows.append(errors.paired(masks[:, None])[:, 0])
        found = {
            "nmse": (("method", "subject"), (torch.stack(rows) / energy).cpu().numpy()),
            "nmse_greedy": (("subject",), (_clairvoyant(errors, initial, self.problem.budget) / energy).cpu().numpy()),
            "nmse_best": (("subject",), (_best(errors, initial, self.problem.budget) / energy).cpu().numpy()),
        }
        return xr.Dataset(found, {"method": [run.method for run in self.compared]})


def _clairvoyant(errors: MaskErrors, initial: Tensor, budget: int) -> Tensor:
    """Error (N,) of the masks that grow by the action that helps each subject most, its image being known."""
    images = len(errors.truth)
    masks = initial.repeat(images, 1)
    best = errors(initial[None])[0]
    for _ in range(budget - int(initial.sum())):
        # All subjects hold as many actions; each tries all of its own.
        tried = masks[:, None] | torch.eye(len(initial), dtype=torch.bool, device=masks.device)
        found = torch.where(masks, math.inf, errors.paired(tried))
        best, action = found.min(1)
        masks[torch.arange(images), action] = True
    return best


def _best(errors: MaskErrors, initial: Tensor, budget: int) -> Tensor:
    """Smallest error (N,) of all masks with the initial actions and the budget.

    Raises:
        InputError: there are too many masks to try.
    """
    free = torch.nonzero(~initial).squeeze(1)
    count = budget - int(initial.sum())
    if (masks := math.comb(len(free), count)) > MOST:
        raise InputError(f"regret: {masks} masks of {count} actions, at most {MOST} can be tried; lower the budget")
    chosen = torch.tensor(list(itertools.combinations(free.tolist(), count)), device=initial.device)
    best = torch.full((len(errors.truth),), math.inf, device=initial.device)
    for part in chosen.split(256):
        tried = initial.repeat(len(part), 1).scatter_(1, part, True)
        best = torch.minimum(best, errors(tried).amin(0))
    return best
