"""One mask for everybody, searched on training images with the exact posterior mean of a mixture prior."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.diffusion.exact_posterior import ExactPosterior


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
        return torch.cat([self._errors(part) for part in masks.split(max(1, 2**13 // len(self.truth)))])

    def _errors(self, masks: Tensor) -> Tensor:
        taken = masks.double()
        projected = torch.einsum("ma,ankr->mkrn", taken, self._projected)
        squared = torch.einsum("ma,nka->mkn", taken, self._squared)
        share, shift = self.posterior.weigh(projected, squared, taken)
        mixed = torch.cat((share[:, :, None], share[:, :, None] * shift), 2).flatten(1, 2).transpose(1, 2)
        mean = (mixed.float() @ self._flat).view(len(masks), *self.truth.shape)
        missed = (self.truth.float() - mean).square().sum(-1)
        return (missed * ~masks[:, None]).sum(-1)
