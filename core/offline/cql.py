"""Conservative Q-learning over a finite number of actions."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from core.errors import InputError
from core.offline.dataset import OfflineDataset
from core.offline.dqn import OfflineDQN
from core.offline.losses import conservative_gap
from core.rl.replay import ReplayBatch


class ConservativeDQN(OfflineDQN):
    """``OfflineDQN`` that values what was not done lower than what was (Kumar et al., NeurIPS 2020, CQL(H)).

    The loss gains ``alpha`` E_s [logsumexp_a Q(s, a) - Q(s, a_logged)], exactly, because all actions can be summed.

    Args:
        dataset: see ``OfflineDQN``.
        alpha: 0 is ``OfflineDQN``.
        **options: those of ``OfflineDQN``.

    Raises:
        InputError: a number out of its range.
    """

    saved_arguments: ClassVar[tuple[str, ...]] = ("alpha", *OfflineDQN.saved_arguments)

    def __init__(self, dataset: OfflineDataset | None, *, alpha: float = 1.0, **options: Any) -> None:
        if not 0 <= alpha < float("inf"):
            raise InputError(f"alpha: {alpha}; allowed: at least 0")
        self.alpha = alpha
        super().__init__(dataset, **options)

    def critic_penalty(self, q_values: Tensor, batch: ReplayBatch) -> Tensor | float:
        """The conservative term and what ``OfflineDQN`` adds."""
        gap = conservative_gap(q_values, q_values.gather(1, batch.actions))
        return self.alpha * gap + super().critic_penalty(q_values, batch)
