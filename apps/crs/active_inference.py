"""Active inference in closed form: ask or recommend, whichever has the smallest expected free energy.

Friston et al. (2017, Neural Computation 29), with one step ahead. The hidden state is the item that the user has in
mind, q its exact posterior (``simulators.crs.belief``); the outcomes are "no" and "yes" to a question, "rejected" and
"accepted" to a list. The negative expected free energy of an action is what its outcome is expected to be worth and the
information in nats that it gives about the item, -G(a) = E_q[C.o] + I(item; o | a):

    ask p:      H2(pi_p) - H2(eps),                  pi_p = q(V_p)(1 - eps) + (1 - q(V_p)) eps
    recommend:  c_acc m - c_rej (1 - m) + H2(m),     m = q(the K items of the largest q)

``apps.crs.pymdp_agent`` computes the same with pymdp's tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apps.crs.policies import Policy
from core.errors import InputError
from simulators.crs import selection
from simulators.crs.belief import Belief, entropy_nats, information_gain
from simulators.crs.catalogue import Ids
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation

GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Sharpnesses of the prior that are tried."""
_BLOCK = 512
"""Dialogues at a time."""


@dataclass(frozen=True)
class Preferences:
    """What the outcomes of a list are worth, in nats.

    Attributes:
        accept: c_acc of a list that holds the item.
        reject: c_rej, what one that does not costs.

    Raises:
        InputError: a number that is negative or not finite.
    """

    accept: float = 1.0
    reject: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise InputError(f"preferences.{name} = {value}: must be at least 0 and finite")

    def of_list(self, mass: Tensor) -> Tensor:
        """-G of recommending a list that is believed to hold the item with this probability."""
        return self.accept * mass - self.reject * (1 - mass) + entropy_nats(mass)


class ActiveInference(Policy):
    """The action of the smallest expected free energy.

    A question about a type or about several attributes counts as the sum over its attributes. As the answers about them
    are independent given the item, this is the most that they can tell together, and exact where they do not overlap in
    what they tell.

    Args:
        world: the conversation.
        belief: the user model.
        preferences: over the outcomes of a list.
        seed: unused; there are no coins.
    """

    relaxes = True

    def __init__(
        self,
        world: Conversation,
        belief: Belief = Belief(),  # noqa: B008 (frozen)
        preferences: Preferences = Preferences(),
        *,
        seed: int = 0,
    ) -> None:
        self.belief, self.preferences = belief, preferences
        super().__init__(world, seed=seed)

    def reset(self, batch: int) -> None:
        """Begin new dialogues."""
        super().reset(batch)
        self._known: tuple[tuple[Tensor, ...], Tensor] | None = None

    def log_posterior(self, observation: Observation) -> Tensor:
        """The logarithm of q ``(B, V)``; that of the last observation is kept."""
        read = tuple(observation[name] for name in ("user", "accepted", "rejected", "recommended"))
        if self._known is None or any(a is not b for a, b in zip(read, self._known[0], strict=True)):
            self._known = read, self.belief.log_posterior(self.world, observation)
        return self._known[1]

    def posterior(self, observation: Observation) -> Tensor:
        """Q ``(B, V)``."""
        return self.log_posterior(observation).exp()

    def neg_efe(self, observation: Observation) -> Tensor:
        """``(B, Q + 1)`` -G in nats of each question, -inf for those that were asked, and of the best list."""
        q = self.posterior(observation)
        values = selection.question_values(self.world, self._gains(q, observation))
        return torch.cat([values, self._of_list(q, observation)[1]], 1)

    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """See the class."""
        q = self.posterior(observation)
        items, listed = self._of_list(q, observation)
        if self.world.rules.question == "binary":
            columns, value = self._best_attribute(q, observation)
        else:
            gains = self._gains(q, observation)
            best = selection.question_values(self.world, gains).max(1)
            columns, value = selection.named(self.world, best.indices.unsqueeze(1), gains)[:, 0], best.values
        asks = (value > listed.squeeze(1)).unsqueeze(1)
        return torch.where(asks, selection.ask(self.world, columns), selection.recommend(self.world, items))

    def recommend(self, observation: Observation) -> Tensor:
        """``(B, A)`` the K items of the largest q among those that were not recommended."""
        return selection.recommend(self.world, self._top(self.log_posterior(observation), observation))

    def _top(self, log_q: Tensor, observation: Observation) -> Tensor:
        return selection.top_items(log_q, ~observation["recommended"].bool(), self.world.rules.list_length)

    def _of_list(self, q: Tensor, observation: Observation) -> tuple[Tensor, Tensor]:
        """``(B, K)`` the best list and ``(B, 1)`` its -G."""
        items = self._top(self.log_posterior(observation), observation)
        mass = (q.gather(1, items.clamp(min=0)) * (items >= 0)).sum(1, keepdim=True)
        return items, self.preferences.of_list(mass.clamp(max=1))

    def _gains(self, q: Tensor, observation: Observation) -> Tensor:
        gains = information_gain(self.world, q, self.belief.error)
        return gains.masked_fill(observation["asked"].bool(), -torch.inf)

    def _best_attribute(self, q: Tensor, observation: Observation) -> tuple[Tensor, Tensor]:
        """``(B, 1)`` the attribute of the largest gain, and its gain ``(B,)``.

        The gain falls with the distance of q(V_p) from one half, which spares a logarithm for each attribute.
        """
        far = (self.world.relation.mass(q) - 0.5).abs_().masked_fill_(observation["asked"].bool(), torch.inf)
        nearest = far.min(1)
        share = (0.5 - nearest.values).clamp(min=0)
        return nearest.indices.unsqueeze(1), torch.where(
            nearest.values.isinf(), -torch.inf, _gain(share, self.belief.error)
        )


def _gain(share: Tensor, error: float) -> Tensor:
    """Information in nats of an answer about an attribute of this q(V_p); the same for 1 - q(V_p)."""
    return entropy_nats(share * (1 - error) + (1 - share) * error) - entropy_nats(share.new_tensor(error))


@dataclass(frozen=True)
class BeliefRanking:
    """Questions by the information that they give about the item, items by the posterior.

    A ``simulators.crs.choice.Ranking``; the share of an attribute is q(V_p).

    Attributes:
        belief: the user model.
    """

    belief: Belief = Belief()  # noqa: RUF009 (frozen)

    def __call__(self, world: Conversation, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, P)`` gain in nats, -inf for what was asked; ``(B, P)`` q(V_p); ``(B, V)`` log q, -inf once rejected."""
        log_q = self.belief.log_posterior(world, observation)
        share = world.relation.mass(log_q.exp()).clamp(0, 1)
        gains = _gain(share, self.belief.error).masked_fill(observation["asked"].bool(), -torch.inf)
        return gains, share, log_q.masked_fill(observation["recommended"].bool(), -torch.inf)


def opened(world: Conversation, pairs: Ids, seed: int) -> Iterator[tuple[Observation, Tensor]]:
    """Dialogues of these pairs after their opening, some hundred at a time, and their targets ``(b, 1)``.

    Raises:
        InputError: no pair.
    """
    if not len(pairs):
        raise InputError("pairs: none; needs at least one (user, item)")
    generator = torch.Generator(world.device).manual_seed(seed)
    for block in torch.as_tensor(pairs, device=world.device).split(_BLOCK):
        state = world.reset_to(block, world.openings(block[:, 1], generator))
        yield world.observe(state, None), block[:, 1:]


def calibrate_beta(
    world: Conversation, pairs: Ids, grid: Sequence[float] = GRID, *, error: float = 0.01, seed: int = 0
) -> float:
    """The sharpness of the prior under which held-out targets are likeliest, once the user has opened.

    Args:
        world: of the embeddings.
        pairs: ``(n, 2)`` (user, item), as of the validation split.
        grid: what is tried.
        error: eps of the belief.
        seed: of the openings.

    Returns:
        The member of the grid of the largest sum of log q(target), the smallest of equals.

    Raises:
        InputError: an empty grid, no pair, or a number out of its range.
    """
    if not len(grid):
        raise InputError("grid: empty; needs at least one beta")
    beliefs = [Belief(beta, error) for beta in sorted(grid)]
    return beliefs[likeliest(world, pairs, [belief.log_posterior for belief in beliefs], seed)].beta


def likeliest(
    world: Conversation, pairs: Ids, models: Sequence[Callable[[Conversation, Observation], Tensor]], seed: int
) -> int:
    """Which model gives held-out targets the largest sum of log probabilities after the opening; the first of equals.

    Args:
        world: of the embeddings.
        pairs: ``(n, 2)`` (user, item).
        models: each returns log probabilities ``(B, V)``.
        seed: of the openings.
    """
    total = torch.zeros(len(models), dtype=torch.float64)
    for observation, target in opened(world, pairs, seed):
        for i, model in enumerate(models):
            total[i] += model(world, observation).gather(1, target).sum().item()
    return int(total.argmax())
