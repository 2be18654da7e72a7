"""A tree of tokens small enough that the best regularised policy is known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, Stepwise, scores_of
from core.sequence.rollouts import Prompts


@dataclass(frozen=True)
class RandomTree:
    """Sequences of ``depth`` tokens out of ``branching``, a few of which have reward 1 and all others 0.

    There is one prompt and no end symbol. Inner nodes are numbered level by level: the root is 0, and token a leads
    from node n to node ``n * branching + a + 1``.

    Args:
        depth: tokens of a sequence, at least 1.
        branching: V, at least 2.
        rewarded: share of the leaves with reward 1, rounded to at least one leaf.
        seed: of the rewards and the reference policy.

    Raises:
        InputError: a value outside its range.
    """

    depth: int = 4
    branching: int = 2
    rewarded: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.depth < 1 or self.branching < 2:
            raise InputError(f"depth = {self.depth}, branching = {self.branching}: must be at least 1 and at least 2")
        if not 0 < self.rewarded <= 1:
            raise InputError(f"rewarded = {self.rewarded}: must be in (0, 1]")

    @property
    def max_length(self) -> int:
        """Tokens of a sequence."""
        return self.depth

    @property
    def nodes(self) -> int:
        """Number of inner nodes."""
        return (self.branching**self.depth - 1) // (self.branching - 1)

    @cached_property
    def leaf_reward(self) -> Tensor:
        """``(branching ** depth,)`` float64 rewards, in the order of ``leaves``."""
        n = self.branching**self.depth
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        return (order < max(1, round(self.rewarded * n))).double()

    @cached_property
    def reference(self) -> Tensor:
        """``(nodes, branching)`` float64 log-probabilities of the reference policy, of standard normal logits."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        logits = torch.randn(self.nodes, self.branching, generator=generator, dtype=torch.float64)
        return logits.log_softmax(-1)

    def prompts(self, n: int, step: int, generator: torch.Generator) -> Prompts:
        """The one prompt, n times."""
        return Prompts(context=torch.zeros(n, 1, device=generator.device), reference=None)

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        """``(B,)`` rewards of whole sequences; 0 for those that were cut."""
        power = self.branching ** torch.arange(self.depth - 1, -1, -1, device=batch.tokens.device)
        whole = batch.length == self.depth
        leaf = (batch.tokens[:, : self.depth] * power[: batch.tokens.shape[1]]).sum(1)
        return torch.where(whole, self.leaf_reward.to(leaf.device)[torch.where(whole, leaf, 0)], 0.0)

    def leaves(self) -> TokenBatch:
        """Every sequence once, with its reward and its log-probabilities under the reference."""
        places = [torch.arange(self.branching)] * self.depth
        tokens = torch.cartesian_prod(*places).reshape(-1, self.depth)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        batch = TokenBatch(tokens, mask, torch.zeros(len(tokens), dtype=torch.int64), torch.zeros(1, 1))
        with torch.no_grad():
            log_prob = TabularPolicy(self).score(batch).log_prob
        return batch.with_(reward=self.leaf_reward, log_prob_old=log_prob, log_prob_ref=log_prob)

    def soft_optimal(self, beta: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(nodes, branching)`` and values ``(nodes,)`` of the best policy, in float64.

        It maximises the expected reward less beta times KL(pi || reference): from the leaves to the root
        V(s) = beta log E_reference exp(V(s') / beta), and log pi = log reference + (V(s') - V(s)) / beta.

        Raises:
            InputError: beta is not above 0.
        """
        if not 0 < beta < math.inf:
            raise InputError(f"beta = {beta}: must be above 0 and finite")
        below, values, policies = self.leaf_reward, [], []
        for reference in reversed(self.reference.split([self.branching**level for level in range(self.depth)])):
            tilted = reference + below.reshape(-1, self.branching) / beta
            below = beta * tilted.logsumexp(-1)
            values.append(below)
            policies.append(tilted.log_softmax(-1))
        return torch.cat(policies[::-1]), torch.cat(values[::-1])


class TabularPolicy(nn.Module, Stepwise):
    """A free logit for each token at each inner node of a tree, and a value for each node.

    Args:
        tree: whose nodes.
        log_probs: ``(nodes, branching)`` to start from; the tree's reference where None.

    Attributes:
        logits: ``(nodes, branching)`` float64.
        value: ``(nodes,)`` float64, 0 at the start.
    """

    eos = -1

    def __init__(self, tree: RandomTree, log_probs: Tensor | None = None) -> None:
        super().__init__()
        self.vocabulary = tree.branching
        self.logits = nn.Parameter((tree.reference if log_probs is None else log_probs).clone())
        self.value = nn.Parameter(torch.zeros(tree.nodes, dtype=torch.float64))

    def start(self, context: Any, group: Tensor) -> tuple[Tensor, Tensor]:
        """See ``StepwisePolicy``; the state is the node ``(B,)``."""
        node = torch.zeros_like(group)
        return self.logits[node], node

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See ``StepwisePolicy``."""
        node = state * self.vocabulary + tokens + 1
        return self.logits[node], node

    def score(self, batch: TokenBatch, temperature: float = 1.0, need: frozenset[str] = NOTHING) -> TokenScores:
        """See ``SequencePolicy``."""
        visited = [torch.zeros_like(batch.group)]
        for token in batch.tokens.unbind(1)[:-1]:
            visited.append((visited[-1] * self.vocabulary + token + 1).clamp(max=len(self.value) - 1))
        node = torch.stack(visited, 1)
        return scores_of(self.logits[node], batch, temperature, need, value=self.value[node])
