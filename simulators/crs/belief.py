"""The exact posterior over items: what a Bayesian who knows how the user answers believes the target to be.

A user answers a question about attribute p with "yes" with probability 1 - eps if the target has p, else with eps. With
the prior q_0(v) = softmax(beta e_u.e_v), the posterior after accepted and rejected attributes is

    q(v) ~ q_0(v) exp(lambda (accepted in P_v - rejected in P_v)),    lambda = log((1 - eps) / eps),

and 0 for items that were rejected in a list. The opening counts as an accepted attribute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation


@dataclass(frozen=True)
class Belief:
    """The posterior of a user model.

    Attributes:
        beta: sharpness of the prior.
        error: eps, the probability that an answer is wrong, as believed.

    Raises:
        InputError: a number out of its range.
    """

    beta: float = 2.0
    error: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise InputError(f"belief.beta = {self.beta}: must be at least 0 and finite")
        if not 0 < self.error < 0.5:
            raise InputError(f"belief.error = {self.error}: must be above 0 and below 0.5")

    @property
    def factor(self) -> float:
        """What lambda is: the logarithm of the odds that an answer is right."""
        return math.log((1 - self.error) / self.error)

    def posterior(self, world: Conversation, observation: Observation) -> Tensor:
        """Q ``(B, V)``."""
        return self.log_posterior(world, observation).exp()

    def log_posterior(self, world: Conversation, observation: Observation) -> Tensor:
        """The logarithm of q ``(B, V)``, -inf for items that were rejected in a list."""
        taste = self.beta * (world.users[observation["user"]] @ world.embeddings.item.T)
        accepted = observation["accepted"].bool()
        row, attribute = (accepted | observation["rejected"].bool()).nonzero(as_tuple=True)
        pair, item = world.relation.items_of(attribute)
        says = torch.where(accepted[row, attribute], 1.0, -1.0)
        key = row[pair] * world.catalogue.n_items + item
        agrees = torch.zeros(taste.numel(), device=taste.device).index_add_(0, key, says[pair])
        logits = taste + self.factor * agrees.view_as(taste)
        gone = observation["recommended"].bool()
        # Where every item was rejected nothing is known any more.
        gone = gone & ~gone.all(1, keepdim=True)
        return logits.masked_fill(gone, -torch.inf).log_softmax(1)


def entropy_nats(share: Tensor) -> Tensor:
    """-x log x - (1 - x) log(1 - x)."""
    share = share.clamp(0, 1)
    return -torch.xlogy(share, share) - torch.xlogy(1 - share, 1 - share)


def information_gain(world: Conversation, posterior: Tensor, error: float) -> Tensor:
    """``(B, P)`` mutual information in nats of the target and the answer to a question about each attribute.

    H2(pi_p) - H2(eps), where pi_p = q(V_p)(1 - eps) + (1 - q(V_p)) eps is the probability of a "yes".
    """
    share = world.relation.mass(posterior).clamp(0, 1)
    yes = share * (1 - error) + (1 - share) * error
    return entropy_nats(yes) - entropy_nats(yes.new_tensor(error))
