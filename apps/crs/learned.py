"""Policies that choose what a Q-network values most."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apps.crs.policies import Policy
from simulators.crs import selection
from simulators.crs.choice import CandidateChoice, Options
from simulators.crs.selection import Observation


class QPolicy(Policy):
    """The allowed action of the largest value.

    Args:
        choice: what can be chosen, as in training.
        q_net: maps the observations of ``choice`` to ``(B, K_p + K_v)`` values.
        relaxes: see ``Policy``; for a choice that is ranked by a belief.
    """

    def __init__(self, choice: CandidateChoice, q_net: nn.Module, *, relaxes: bool = False) -> None:
        super().__init__(choice.world)
        self.choice, self.q_net, self.relaxes = choice, q_net, relaxes

    @torch.no_grad()
    def valued(self, observation: Observation) -> tuple[Tensor, Options]:
        """``(B, K_p + K_v)`` values, -inf for what is not allowed, and the options."""
        seen, options = self.choice.seen(observation)
        # Whoever trains it leaves it in training, with dropout.
        values: Tensor = self.q_net.eval()(seen)
        return values.masked_fill(~seen["mask"], -torch.inf), options

    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """See the class; with several items to choose from, the list is in the order of their values."""
        values, options = self.valued(observation)
        chosen = values.argmax(1)
        action = self.choice.action_of(options, chosen)
        if self.choice.items:
            ordered = self._ordered(values, options)
            action = torch.where((chosen >= self.choice.slots).unsqueeze(1), ordered, action)
        return action

    def recommend(self, observation: Observation) -> Tensor:
        """The list of the choice."""
        values, options = self.valued(observation)
        if self.choice.items:
            return self._ordered(values, options)
        return selection.recommend(self.choice.world, options.item)

    def _ordered(self, values: Tensor, options: Options) -> Tensor:
        """``(B, A)`` recommend the items in the order of their values, then those that cannot be chosen."""
        rest = options.item.shape[1] - self.choice.items
        own = nn.functional.pad(values[:, self.choice.slots :], (0, rest), value=-torch.inf)
        item = options.item.gather(1, own.argsort(dim=1, descending=True, stable=True))
        return selection.recommend(self.choice.world, item)
