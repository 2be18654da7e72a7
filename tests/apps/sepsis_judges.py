"""Judges whose debates can be worked out by hand."""

from dataclasses import dataclass, field

import torch


@dataclass
class TableJudge:
    """J(a, e) = sum over revealed items of weight[a, i] s_i, plus what pairs of items add together; counts its rows."""

    weight: torch.Tensor
    pair: torch.Tensor | None = None
    asked: list[int] = field(default_factory=list)

    def score(self, state, mask, action):
        shape = torch.broadcast_shapes(state.shape[:-1], mask.shape[:-1], action.shape)
        self.asked.append(shape.numel())
        shown = torch.where(mask, state, 0.0)
        score = (self.weight[action] * shown).sum(-1)
        if self.pair is not None:
            score = score + torch.einsum("...i,...ij,...j->...", shown, self.pair[action], shown)
        return score.expand(shape)

    def candidate_scores(self, state, mask, action):
        more = mask[:, None] | torch.eye(mask.shape[1], dtype=torch.bool)
        return self.score(state[:, None], more, action[:, None])


def additive_judge(features=44, seed=0):
    """Each item counts on its own."""
    generator = torch.Generator().manual_seed(seed)
    return TableJudge(torch.randn(25, features, generator=generator, dtype=torch.float64))


def pairwise_judge(features=6, seed=0):
    """What an item is worth depends on the others."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(25, features, generator=generator, dtype=torch.float64)
    return TableJudge(weight, torch.randn(25, features, features, generator=generator, dtype=torch.float64))


def cases(n=20, features=44, seed=1):
    """States, and two different actions for each."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(n, features, generator=generator, dtype=torch.float64)
    first = torch.randint(25, (n,), generator=generator)
    second = (first + torch.randint(1, 25, (n,), generator=generator)) % 25
    return state, first, second
