"""Terms of losses that several offline algorithms share."""

from __future__ import annotations

import torch
from torch import Tensor


def conservative_gap(q_ood: Tensor, q_data: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean of T logsumexp_a Q(s, a) / T - Q(s, a_data) (Kumar et al. 2020, CQL, eq. 4): what no data speak for, less
    what data do.

    Args:
        q_ood: ``(N, A)`` values of all actions, or of A drawn ones.
        q_data: ``(N,)`` or ``(N, 1)`` values of the logged actions.
        temperature: T; towards 0 it is the largest value.

    Returns:
        ``()``, at least 0 where all actions are among those of ``q_ood``.
    """
    soft = temperature * torch.logsumexp(q_ood / temperature, 1)
    return (soft - q_data.reshape(-1)).mean()
