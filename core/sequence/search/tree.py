"""Monte Carlo tree search over prefixes, one tree a prompt, all trees at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import PAD, TokenBatch
from core.sequence.policy import StepwisePolicy
from core.sequence.search.growing import Growing
from core.sequence.search.ranking import Score, ranked
from core.sequence.search.value_beam import Value


@dataclass(frozen=True)
class Trees:
    """P trees of N nodes with M edges each; node 0 is the empty sequence, node s what simulation s has added.

    Attributes:
        token: ``(P, N, M)`` int64, symbol of an edge.
        prior: ``(P, N, M)`` the policy's probability of it.
        child: ``(P, N, M)`` int64, the node it leads to, -1 before it is taken.
        visits: ``(P, N, M)`` simulations through an edge.
        total: ``(P, N, M)`` float64, what they were worth.
        open: ``(P, N, M)`` bool: leads to sequences that have not all been seen.
        parent: ``(P, N)`` int64.
        edge: ``(P, N)`` int64, the parent's edge that leads here.
    """

    token: Tensor
    prior: Tensor
    child: Tensor
    visits: Tensor
    total: Tensor
    open: Tensor
    parent: Tensor
    edge: Tensor

    @classmethod
    def empty(cls, prompts: int, nodes: int, edges: int, device: torch.device) -> Trees:
        """Trees without a node."""
        numbers = torch.zeros(prompts, nodes, edges, device=device)
        ids = torch.zeros(prompts, nodes, edges, dtype=torch.int64, device=device)
        return cls(
            token=ids,
            prior=numbers,
            child=ids - 1,
            visits=numbers.clone(),
            # A score of -inf counts as the lowest float32; in float32 two of them would add up to -inf, as if closed.
            total=numbers.double(),
            open=numbers > 0,
            parent=ids[:, :, 0].clone(),
            edge=ids[:, :, 0].clone(),
        )

    def write(self, node: int, leaf: Growing, temperature: float) -> None:
        """Fill the edges of a new node of every tree from the policy's logits there."""
        probability, token = (leaf.logits.float() / temperature).softmax(-1).topk(self.token.shape[2], dim=1)
        self.token[:, node], self.prior[:, node] = token, probability.nan_to_num(nan=0.0)
        self.open[:, node] = (probability > 0) & ~leaf.done.unsqueeze(1)

    def descend(self, c_puct: float, depth: int) -> tuple[Tensor, Tensor]:
        """Nodes and edges ``(P,)`` that Q + c P sqrt(N) / (1 + n) leads to and that have no child yet."""
        p = torch.arange(len(self.token), device=self.token.device)
        node = torch.zeros_like(p)
        for _ in range(depth):
            visits = self.visits[p, node]
            worth = self.total[p, node] / visits.clamp(min=1)
            wish = self.prior[p, node] * visits.sum(1, keepdim=True).clamp(min=1).sqrt() / (1 + visits)
            edge = torch.where(self.open[p, node], worth + c_puct * wish, -torch.inf).argmax(1)
            child = self.child[p, node, edge]
            if not bool((child >= 0).any()):
                break
            node = torch.where(child >= 0, child, node)
        return node, edge

    def grow(self, node: Tensor, edge: Tensor, new: int) -> None:
        """Hang node ``new`` of every tree on an edge."""
        p = torch.arange(len(node), device=node.device)
        self.child[p, node, edge] = new
        self.parent[:, new], self.edge[:, new] = node, edge

    def back_up(self, new: int, worth: Tensor, depth: int) -> None:
        """Add what a simulation was worth to all edges above its node; close those below which all has been seen."""
        p = torch.arange(len(worth), device=worth.device)
        node = torch.full_like(p, new)
        for _ in range(depth):
            below = (node > 0).float()
            parent, edge = self.parent[p, node], self.edge[p, node]
            self.visits[p, parent, edge] += below
            self.total[p, parent, edge] += below * worth
            self.open[p, parent, edge] &= (node == 0) | self.open[p, node].any(1)
            node = parent


@torch.no_grad()
def tree_search(
    policy: StepwisePolicy,
    context: Any,
    simulations: int,
    max_length: int,
    score: Score,
    *,
    value: Value | None = None,
    expand: int = 8,
    c_puct: float = 1.25,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> TokenBatch:
    """Search each prompt's tree of prefixes by PUCT: the policy proposes tokens, means of what was reached decide.

    Rosin 2011 and Silver et al. 2017 (doi:10.1038/nature24270), with deterministic steps. A simulation adds one node a
    tree and judges it by a random completion (or by ``value``), and a branch that has been seen to its last sequence is
    not entered again, so no simulation repeats. A node keeps the policy's state: a new one costs one token.

    Args:
        policy: what proposes and completes.
        context: of P prompts.
        simulations: nodes that each tree may have beside its root.
        max_length: tokens at most.
        score: of complete sequences; of the order of 1, to stand against the proposals. With ``value`` it is called on
            unfinished ones too, and what it says of them is not used.
        value: of unfinished sequences, in place of completions in the search.
        expand: the most probable tokens that may follow a node; its children.
        c_puct: weight of the proposals.
        temperature: of proposals and completions.
        generator: of the completions.

    Returns:
        ``P * simulations`` complete sequences with ``reward`` their scores, best first: the completion of each node.
        Where a tree has been seen whole before, the last rows have no token and reward -inf.

    Raises:
        InputError: simulations, max_length or expand < 1, or temperature not above 0.
    """
    if min(simulations, max_length, expand) < 1 or temperature <= 0:
        raise InputError(
            f"tree_search: simulations, max_length, expand are {simulations}, {max_length}, {expand}, the temperature "
            f"{temperature}; at least 1, and above 0"
        )
    pool = Growing.begin(policy, context, max_length)
    prompts, vocabulary = pool.logits.shape
    trees = Trees.empty(prompts, simulations + 1, min(expand, vocabulary), pool.group.device)
    trees.write(0, pool, temperature)
    prompt = pool.group
    ends, fresh = [], []
    for new in range(1, simulations + 1):
        fresh.append(trees.open[:, 0].any(1))
        node, edge = trees.descend(c_puct, max_length)
        leaf = pool.take(policy, node * prompts + prompt)
        leaf = leaf.append(policy, trees.token[prompt, node, edge], ~leaf.done, temperature)
        trees.write(new, leaf, temperature)
        trees.grow(node, edge, new)
        end = (leaf if value is not None else leaf.extend(policy, temperature, generator)).batch(context)
        worth = score(end).float()
        ends.append(end.with_(reward=worth))
        if value is not None:
            worth = torch.where(leaf.done, worth, value(policy, end).float())
        trees.back_up(new, worth.nan_to_num(), max_length)
        pool = pool.joined(policy, leaf)
    if value is not None:
        rows = torch.arange(prompts, len(pool.group), device=prompt.device)
        end = pool.take(policy, rows).extend(policy, temperature, generator).batch(context)
        ends = [end.with_(reward=score(end).float())]
    batch, unseen = TokenBatch.joined(ends), torch.cat(fresh)
    batch = batch.with_(mask=batch.mask & unseen.unsqueeze(1))
    batch = batch.with_(
        tokens=torch.where(batch.mask, batch.tokens, PAD),
        log_prob_old=torch.where(batch.mask, batch.need("log_prob_old"), 0.0),
    )
    return ranked(batch, torch.where(unseen, batch.need("reward"), -torch.inf))
