"""Several judges of the same preferences: where they disagree they abstain, and ask for an answer there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from apps.sepsis.judge.accuracy import random_evidence
from apps.sepsis.judge.network import RECORD, Judge, JudgeSettings
from apps.sepsis.judge.training import train_judge
from apps.sepsis.preferences import Preferences
from core.errors import InputError
from core.seeds import stream
from simulators.sepsis.cohort import Steps
from simulators.sepsis.features import ACTIONS


@dataclass(frozen=True)
class JudgeEnsemble:
    """Several judges of the same preferences, which say together how sure they can be.

    It has the scores of a judge (their mean), so that it can preside over a debate.

    Attributes:
        judges: trained with different seeds for the same number of items.
    """

    judges: tuple[Judge, ...]

    def __post_init__(self) -> None:
        if len({(judge.items, judge.features) for judge in self.judges}) != 1:
            raise InputError("judges: at least one, all for the same features and number of items")

    @property
    def items(self) -> int:
        """Features that each judge is shown."""
        return self.judges[0].items

    def score(self, state: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        """Mean score; see ``Judge.score``."""
        return torch.stack([judge.score(state, mask, action) for judge in self.judges]).mean(0)

    def candidate_scores(self, state: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        """Mean score; see ``Judge.candidate_scores``."""
        return torch.stack([judge.candidate_scores(state, mask, action) for judge in self.judges]).mean(0)

    def preference(self, state: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Mean P(first is preferred) ``(...)``."""
        return self.preferences(state, mask, first, second).mean(0)

    def to(self, device: torch.device | str) -> JudgeEnsemble:
        """The same, its judges moved to another device."""
        return JudgeEnsemble(tuple(judge.to(device) for judge in self.judges))

    def save(self, folder: Path) -> None:
        """Write each judge into a folder ``judge_<k>`` of its own, as ``Judge.save`` does."""
        for k, judge in enumerate(self.judges):
            judge.save(folder / f"judge_{k}")

    @staticmethod
    def load(folder: Path, items: int | None = None) -> JudgeEnsemble:
        """Read what ``save`` wrote; see ``Judge.load``.

        Raises:
            InputError: no judge in the folder, or as ``Judge.load``.
        """
        held: list[Judge] = []
        while (one := folder / f"judge_{len(held)}").is_dir():
            held.append(Judge.load(one, items))
        if not held:
            raise InputError(f"{folder}: holds no judge")
        return JudgeEnsemble(tuple(held))

    def preferences(self, state: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Each judge's P(first is preferred) ``(J, ...)``."""
        return torch.stack([judge.preference(state, mask, first, second) for judge in self.judges])

    def disagreement(self, state: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Entropy of the mean probability minus mean entropy, in bits ``(...)``: 0 where all judges say the same.

        It is what an answer would tell about which judge is right (BALD; Houlsby et al. 2011, arXiv 1112.5745, eq. 2).
        """
        p = self.preferences(state, mask, first, second)
        return (_entropy(p.mean(0)) - _entropy(p).mean(0)).clamp(min=0.0)

    def verdict(self, state: Tensor, mask: Tensor, first: Tensor, second: Tensor, agreement: float = 1.0) -> Tensor:
        """+1 ``first``, -1 ``second``, 0 abstain ``(...)``, as long as not ``agreement`` of the judges say the same."""
        p = self.preferences(state, mask, first, second)
        share = ((p > 0.5).float() + 0.5 * (p == 0.5)).mean(0)
        # Shares of 3 in 5 and the like are not exact in float32.
        return (share >= agreement - 1e-6).int() - (share <= 1 - agreement + 1e-6).int()


def load_judge(folder: Path, items: int | None = None) -> Judge | JudgeEnsemble:
    """The judge in a folder, or the several ones, whichever was saved there.

    Raises:
        InputError: no such folder, neither in it, or as ``Judge.load``.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it must be one that holds a judge")
    return Judge.load(folder, items) if (folder / RECORD).exists() else JudgeEnsemble.load(folder, items)


def train_ensemble(
    preferences: Preferences,
    settings: JudgeSettings,
    seed: int,
    *,
    members: int = 5,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> JudgeEnsemble:
    """Judges that differ in first weights, order and evidence.

    Args:
        preferences: N pairs.
        settings: of each judge.
        seed: of all.
        members: number of judges.
        device: where to train.
        checkpoint: a folder, in which each judge has the file that ``train_judge`` keeps.
        progress: told the share done and a message, each epoch.
    """
    judges = []
    for k in range(members):
        path = None if checkpoint is None else checkpoint / f"judge_{k}.safetensors"

        def told(share: float, message: str, k: int = k) -> None:
            if progress is not None:
                progress((k + share) / members, f"judge {k + 1} of {members}, {message}")

        one = stream(seed, f"judge {k}")
        judges.append(train_judge(preferences, settings, one, device=device, checkpoint=path, progress=told))
    return JudgeEnsemble(tuple(judges))


def most_useful_pairs(ensemble: JudgeEnsemble, steps: Steps, k: int, generator: torch.Generator) -> Preferences:
    """The questions to clinicians whose answers would tell most: one pair for each of the ``k`` best decisions.

    Each logged treatment is held against all others under one random set of evidence, and the pair of largest
    ``disagreement`` is kept; which of its two is named first is drawn, and its label is .5: not answered yet.

    Args:
        ensemble: on the device of ``steps``.
        steps: N decisions.
        k: pairs wanted; all N if there are fewer.
        generator: on the same device.
    """
    n, device = len(steps), steps.action.device
    mask = random_evidence(n, ensemble.items, generator, device)
    every = torch.arange(ACTIONS, device=device)
    gain = ensemble.disagreement(steps.state[:, None], mask[:, None], steps.action[:, None], every)
    gain.scatter_(1, steps.action[:, None], -1.0)
    gain, other = gain.max(1)
    rows = gain.topk(min(k, n)).indices
    pair = torch.stack((steps.action[rows], other[rows]), 1)
    turned = torch.rand(len(rows), generator=generator, device=device) < 0.5
    first, second = torch.where(turned[:, None], pair.flip(1), pair).unbind(1)
    label = torch.full((len(rows),), 0.5, device=device)
    return Preferences(steps.state[rows], first, second, steps.patient[rows], steps.step[rows], label, mask[rows])


def _entropy(p: Tensor) -> Tensor:
    """Of a coin, in bits."""
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / math.log(2)
