"""One mask for everybody, searched on training images with the exact posterior mean of a mixture prior."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.diffusion.exact_posterior import ExactPosterior

SHARED = 2**13
"""Pairs of a mask and an image computed at once where all images share the masks, which bounds the memory."""
PAIRED = 2**10
"""The same where each image has masks of its own: every pair then needs its own factorisation."""


def greedy_fixed(
    posterior: ExactPosterior,
    images: Tensor,
    initial: Tensor,
    budget: int,
    progress: Callable[[float], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward selection of the mask that minimises the error of the exact posterior mean on training images.

    The error is that of the samples that were not measured: hard consistency removes the others'.

    Args:
        posterior: of the prior and the measurement.
        images: ``(N, C, H, W)`` training images.
        initial: ``(A,)`` bool, actions held from the start.
        budget: actions of the mask.
        progress: called with the share of the work done.

    Returns:
        The actions in the order of their choice (budget - initial,), and the summed squared error an image after each.
    """
    search = MaskErrors(posterior, images)
    mask = initial.clone()
    order, errors = [], []
    count = budget - int(initial.sum())
    for i in range(count):
        candidates = torch.nonzero(~mask).squeeze(1)
        masks = mask.repeat(len(candidates), 1)
        masks[torch.arange(len(candidates), device=mask.device), candidates] = True
        found = search(masks).mean(1)
        best = found.argmin()
        mask[candidates[best]] = True
        order.append(candidates[best])
        errors.append(found[best])
        if progress is not None:
            progress((i + 1) / count)
    if not order:
        return torch.empty(0, dtype=torch.long), torch.empty(0)
    return torch.stack(order), torch.stack(errors)


class MaskErrors:
    """Errors of the exact posterior mean of N images under many masks, what all masks share computed once.

    Args:
        posterior: of the prior and the measurement.
        images: ``(N, C, H, W)``.
    """

    def __init__(self, posterior: ExactPosterior, images: Tensor) -> None:
        self.posterior = posterior
        self.truth = posterior.measurement.forward(images.double())
        missed = self.truth[:, None] - posterior.means
        self._squared = missed.square().sum(-1)
        self._projected = torch.einsum("krac,nkac->ankr", posterior.basis, missed)
        # The images' samples in float32: only the weights of the components need more.
        self._flat = torch.cat((posterior.means[:, None], posterior.basis), 1).flatten(2).flatten(0, 1).float()

    def __call__(self, masks: Tensor) -> Tensor:
        """Summed squared error (M, N) of the samples outside each of ``masks`` (M, A)."""
        return torch.cat([self._shared(part) for part in masks.split(max(1, SHARED // len(self.truth)))])

    def paired(self, masks: Tensor) -> Tensor:
        """Summed squared error (N, M) of each image under M masks of its own, ``masks`` (N, M, A).

        Column m is the diagonal of the table of ``masks[:, m]``, without the rest of that table.
        """
        images = torch.arange(len(self.truth), device=masks.device).split(max(1, PAIRED // masks.shape[1]))
        return torch.cat([self._paired(masks[part], part) for part in images])

    def _shared(self, masks: Tensor) -> Tensor:
        taken = masks.double()
        projected = torch.einsum("ma,ankr->mkrn", taken, self._projected)
        squared = torch.einsum("ma,nka->mkn", taken, self._squared)
        return self._errors(masks, projected, squared, self.truth)

    def _paired(self, masks: Tensor, images: Tensor) -> Tensor:
        """Errors (n, M) of the ``images`` (n,), given by number, under ``masks`` (n, M, A)."""
        taken = masks.double()
        projected = torch.einsum("nma,ankr->nmkr", taken, self._projected[:, images])
        squared = torch.einsum("nma,nka->nmk", taken, self._squared[images])
        # A pair is a mask with one image.
        pairs = [part.flatten(0, 1)[..., None] for part in (projected, squared)]
        truth = self.truth[images].repeat_interleave(masks.shape[1], 0)[:, None]
        return self._errors(masks.flatten(0, 1), pairs[0], pairs[1], truth).view(masks.shape[:2])

    def _errors(self, masks: Tensor, projected: Tensor, squared: Tensor, truth: Tensor) -> Tensor:
        """Errors (S, N) under ``masks`` (S, A) of images with samples (N, A, R), or (S, N, A, R); see ``weigh``."""
        share, shift = self.posterior.weigh(projected, squared, masks.double())
        mixed = torch.cat((share[:, :, None], share[:, :, None] * shift), 2).flatten(1, 2).transpose(1, 2)
        mean = (mixed.float() @ self._flat).unflatten(-1, truth.shape[-2:])
        missed = (truth.float() - mean).square().sum(-1)
        return (missed * ~masks[:, None]).sum(-1)
