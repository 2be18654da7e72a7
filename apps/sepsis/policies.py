"""Policies learned from a cohort: the mean Q of a few networks, with its greedy actions and its probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.sepsis.settings import Learner, PolicySettings
from core import files
from core.errors import InputError
from core.offline import ConservativeDQN, MeanQ, OfflineDQN
from core.seeds import stream
from simulators.sepsis.cohort import Cohort, Split
from simulators.sepsis.features import Normalisation, feature_hash

FILE = "policy.json"


class LearnedPolicy:
    """The greedy policy of a mean Q, on normalised states; called with units, it normalises them first.

    Attributes:
        models: the networks.
        q: their mean.
        normalisation: of the cohort that it was trained on; None where only normalised values are known.
    """

    def __init__(self, models: Sequence[OfflineDQN], normalisation: Normalisation | None) -> None:
        self.models, self.q, self.normalisation = tuple(models), MeanQ(models), normalisation

    def greedy(self, state: Tensor) -> Tensor:
        """Best actions ``(N,)`` of normalised states ``(N, 44)``."""
        return self.q.q_values(state).argmax(1)

    def probabilities(self, state: Tensor, temperature: float = 1.0) -> Tensor:
        """``(N, 25)`` softmax of Q / temperature."""
        return self.q.predict_probabilities(state, temperature)

    def __call__(self, observation: Tensor, state: object = None) -> Tensor:
        """Best actions ``(B,)`` of observations ``(B, 44)`` in units, or normalised where units are not known."""
        seen = observation.float()
        return self.greedy(seen if self.normalisation is None else self.normalisation.apply(seen))

    def save(self, folder: Path) -> None:
        """Write the networks and ``policy.json`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for i, model in enumerate(self.models):
            model.save(folder / f"net{i}")
        scale = self.normalisation
        record = {
            "features": feature_hash(),
            "nets": len(self.models),
            "mean": None if scale is None else scale.mean.tolist(),
            "std": None if scale is None else scale.std.tolist(),
        }
        files.write_json(folder / FILE, record)

    @staticmethod
    def load(folder: Path, device: str | torch.device = "cpu") -> LearnedPolicy:
        """Read what ``save`` wrote.

        Raises:
            InputError: missing or damaged files, or a policy made for other features.
        """
        record = files.read_json(folder / FILE, ("features", "nets", "mean", "std"))
        if record["features"] != feature_hash():
            raise InputError(f"{folder / FILE}: made for another list of features; allowed: {feature_hash()}")
        models = [OfflineDQN.load(folder / f"net{i}", device=device) for i in range(record["nets"])]
        scale = None
        if record["mean"] is not None:
            scale = Normalisation(torch.tensor(record["mean"]), torch.tensor(record["std"]))
        return LearnedPolicy(models, scale)


def train_policy(
    cohort: Cohort,
    reward: Tensor,
    settings: PolicySettings,
    learner: Learner,
    seed: int,
    *,
    lam: float = 0.0,
    splits: tuple[Split, ...] = ("train", "validation"),
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
    watch: Callable[[LearnedPolicy, int], None] | None = None,
    looks: int = 1,
) -> tuple[LearnedPolicy, float]:
    """Train the networks of a policy, in ``looks`` parts one after the other.

    Args:
        cohort: P patients of at most T steps.
        reward: ``(P, T)`` of the logged actions.
        settings: of the training.
        learner: plain or conservative.
        seed: of the networks and their batches.
        lam: lambda, which chooses the number of steps of a return.
        splits: of the patients that are learned from.
        device: where.
        checkpoint: folder that survives a kill.
        progress: told the share done and a message.
        watch: shown the policy and the updates so far at the end of each part.
        looks: number of parts; it changes nothing in the result.

    Returns:
        The policy, and the share of the targets that the bound on Q clipped.

    Raises:
        TrainingDiverged: a loss or parameter is not finite.
    """
    dataset = cohort.dataset(reward, splits).to(device)
    kind: Any = partial(ConservativeDQN, alpha=learner.alpha) if learner.alpha else OfflineDQN
    models: list[OfflineDQN] = [
        kind(
            dataset,
            learning_rate=settings.learning_rate,
            adam_eps=settings.adam_eps,
            batch_size=settings.batch,
            gamma=settings.gamma,
            tau=settings.tau,
            n_steps=settings.n_steps if lam <= 0.5 else settings.n_steps_above,
            double=True,
            prioritized=settings.prioritized,
            q_bound=settings.q_bound,
            policy_kwargs={
                "dueling": True,
                "net_arch": list(settings.hidden),
                "head_arch": [settings.heads],
                "batch_norm": settings.batch_norm,
                "activation_fn": torch.nn.LeakyReLU,
                "xavier": settings.initial == "xavier",
            },
            seed=stream(seed, f"network {i}"),
            device=device,
        )
        for i in range(settings.nets)
    ]
    policy = LearnedPolicy(models, cohort.normalisation)
    ends = [settings.updates * (part + 1) // looks for part in range(looks)]
    for part, (begin, end) in enumerate(pairwise([0, *ends])):
        for i, model in enumerate(models):
            kept = None if checkpoint is None else checkpoint / f"net{i}_part{part}.safetensors"
            place = (part * settings.nets + i, looks * settings.nets)
            model.fit(end - begin, checkpoint=kept, progress=None if progress is None else _part(progress, *place))
        if watch is not None:
            watch(policy, end)
    clipped = sum(float(model.clipped_share) for model in models) / len(models)
    return policy, clipped


def _part(progress: Callable[[float, str], None], i: int, of: int) -> Callable[[float, str], None]:
    return lambda done, what: progress((i + done) / of, f"{what} of {i + 1} in {of} trainings")
