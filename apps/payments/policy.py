"""A policy as it is deployed: an oracle, a rule of exploration and a name that its random numbers are keyed by."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from apps.payments.exploration import WEIGHED, Exploration, Learned
from apps.payments.log import manifest
from apps.payments.oracles import Oracle, load_oracle
from core import files
from core.bandits import best_action, philox_uniform, sample_actions
from core.errors import InputError
from simulators.payments.context import PaymentContext, Sizes

NAME = "policy.json"
KEYS = (
    "policy_id",
    "generation",
    "sizes",
    "exploration",
    "learned",
    "oracles",
    "learned_from",
    "held_out",
)
BLOCK = 64
"""Rows are scored in multiples of this many, the last ones repeated: libraries of linear algebra add up in another
order for few rows than for many, and a decision must not depend on the batch that it came in."""


@dataclass(frozen=True)
class Decisions:
    """What was decided about n payments.

    Attributes:
        action: ``(n,)`` int64.
        propensity: ``(n,)``, probability with which it was drawn.
        probabilities: ``(n, K)`` of all actions.
        gap: ``(n,)``, by how much the best available action is predicted to be better than the one taken.
        gamma: ``(n,)``, of the rules that have one.
        coin: ``(n,)`` bool, whether the payment is of the exploration slice, of ``epsilon_slice``.
    """

    action: Tensor
    propensity: Tensor
    probabilities: Tensor
    gap: Tensor
    gamma: Tensor | None = None
    coin: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Policy:
    """Decisions that are a pure function of policy, payment and transaction id.

    The random number of a decision is Philox's for the key of ``policy_id`` and the counter of the transaction, so
    that the same payment asked for twice, in whatever batch, gets the same action and propensity.

    Attributes:
        policy_id: its name; another one draws other random numbers.
        generation: of the policy, 0 for the first.
        oracle: predicts; several for ``thompson_bootstrap``, none for ``uniform``.
        sizes: of the portfolio.
        exploration: the rule.
        learned: what the rule has to know of the oracle.
        dtype: of the arithmetic.
        model_sha: SHA-256 of the saved files, 32 bytes; None before ``save``.
        learned_from: SHA-256 of the joined log that it was trained on, in hexadecimal; empty if unknown.
        held_out: whether a fold of that log was left out, on which it can be judged.
    """

    policy_id: str
    generation: int
    oracle: Oracle[Any] | Sequence[Oracle[Any]] | None
    sizes: Sizes
    exploration: Exploration
    learned: Learned = field(default_factory=Learned)
    dtype: torch.dtype = torch.float64
    model_sha: bytes | None = None
    learned_from: str = ""
    held_out: bool = False

    def __post_init__(self) -> None:
        if not self.oracles and self.rule != "uniform":
            raise InputError(f"rule = {self.rule}: needs an oracle; only uniform does without")
        if (self.rule == "thompson_bootstrap") != (len(self.oracles) > 1):
            raise InputError(f"rule = {self.rule}: cannot use {len(self.oracles)} oracles")

    @property
    def oracles(self) -> tuple[Oracle[Any], ...]:
        """All of them."""
        if self.oracle is None:
            return ()
        return tuple(self.oracle) if isinstance(self.oracle, Sequence) else (self.oracle,)

    @property
    def rule(self) -> str:
        """Name of the rule of exploration."""
        return self.exploration.rule

    @property
    def epsilon(self) -> float | None:
        """Share of uniform decisions, of the rules that have one."""
        return self.exploration.epsilon if self.rule in ("epsilon", "epsilon_slice") else None

    def probabilities(self, context: PaymentContext, mask: Tensor) -> Tensor:
        """Probabilities ``(n, K)`` of all actions, 0 where they are not available.

        Args:
            context: n payments.
            mask: ``(n, K)`` bool, the available actions.

        Raises:
            InputError: a payment without an action, or a number that is not finite.
        """
        return self._scored(context, mask)[1]

    def decide(self, context: PaymentContext, mask: Tensor, counters: Tensor) -> Decisions:
        """Choose an action for each payment.

        Args:
            context: n payments.
            mask: ``(n, K)`` bool, the available actions.
            counters: ``(n, 4)`` int64 in [0, 2^32), of the transactions: ``counters_of`` their ids.

        Raises:
            InputError: as ``probabilities``, or counters out of their range.
        """
        scores, probabilities = self._scored(context, mask)
        draws = philox_uniform(self._key(), counters).to(probabilities.device)
        drawn = sample_actions(probabilities, mask, draws)
        best = scores.gather(1, best_action(scores, mask)[:, None]).squeeze(1)
        gap = best - scores.gather(1, drawn.action[:, None]).squeeze(1)
        gamma = self.exploration.gammas(mask, self.learned.examples) if self.rule in WEIGHED else None
        coin = self._coins(drawn.action, drawn.propensity, mask, counters) if self.rule == "epsilon_slice" else None
        return Decisions(drawn.action, drawn.propensity, probabilities, gap, gamma, coin)

    def _scored(self, context: PaymentContext, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and probabilities, each ``(n, K)``."""
        n = len(context)
        if n % BLOCK:
            index = torch.arange(BLOCK * math.ceil(n / BLOCK), device=mask.device).clamp(max=n - 1)
            context, mask = context.take(index), mask[index]
        context = context.to(dtype=self.dtype)
        found = [oracle.predict_all(context, self.dtype) for oracle in self.oracles]
        if not found:
            found = [torch.zeros(mask.shape, dtype=self.dtype, device=mask.device)]
        scores = torch.stack(found) if len(found) > 1 else found[0]
        probabilities = self.exploration.probabilities(scores, mask, self.learned)
        return (scores.mean(0) if scores.ndim == 3 else scores)[:n], probabilities[:n]

    def _key(self, purpose: str = "") -> Tensor:
        digest = hashlib.sha256(f"{self.policy_id}{purpose}".encode()).digest()
        return torch.from_numpy(np.frombuffer(digest[:8], dtype="<u4").astype(np.int64))

    def _coins(self, action: Tensor, propensity: Tensor, mask: Tensor, counters: Tensor) -> Tensor:
        """Whether each action came of the slice: drawn after the action, from its probability given the action."""
        share = self.exploration.epsilon * (1 - self.exploration.floor)
        return philox_uniform(self._key("\0coin"), counters).to(mask.device) < share / mask.sum(1) / propensity

    def save(self, directory: str | Path) -> Policy:
        """Write the policy into a folder, ``policy.json`` last; it names the checksums of all other files.

        Returns:
            The same policy with its ``model_sha``.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        checksums = {}
        for number, oracle in enumerate(self.oracles):
            place = folder / (f"oracle_{number}" if number else "oracle")
            oracle.save(place)
            checksums[place.name] = {path.name: manifest.sha256(path) for path in sorted(place.iterdir())}
        learned = {"rows": self.learned.rows, "groups": self.learned.groups}
        data = {
            "format": 1,
            "policy_id": self.policy_id,
            "generation": self.generation,
            "sizes": asdict(self.sizes),
            "exploration": self.exploration.model_dump(mode="json"),
            "learned": {"examples": self.learned.examples}
            | {name: None if x is None else x.tolist() for name, x in learned.items()},
            "oracles": checksums,
            "learned_from": self.learned_from,
            "held_out": self.held_out,
        }
        files.write_json(folder / NAME, data)
        return replace(self, model_sha=bytes.fromhex(manifest.sha256(folder / NAME)))

    @staticmethod
    def load(directory: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Policy:
        """The policy in a folder.

        Raises:
            InputError: there is none, or its files are damaged or of different policies.
        """
        folder = Path(directory)
        data = files.read_json(folder / NAME, KEYS)
        for place, checksums in data["oracles"].items():
            for name, checksum in checksums.items():
                path = folder / place / name
                if not path.is_file() or manifest.sha256(path) != checksum:
                    raise InputError(f"{path}: is not the file that {folder / NAME} names")
        learned = data["learned"]
        known = {
            name: None if learned[name] is None else torch.tensor(learned[name], device=device)
            for name in ("rows", "groups")
        }
        try:
            exploration = Exploration.model_validate(data["exploration"])
        except ValidationError as error:
            raise InputError(f"{folder / NAME}: exploration: {error.errors()[0]['msg']}") from error
        oracles = [load_oracle(folder / place, device) for place in data["oracles"]]
        return Policy(
            data["policy_id"],
            data["generation"],
            oracles[0] if len(oracles) == 1 else oracles or None,
            Sizes(**data["sizes"]),
            exploration,
            Learned(learned["examples"], **known),
            dtype,
            bytes.fromhex(manifest.sha256(folder / NAME)),
            data["learned_from"],
            data["held_out"],
        )


def counters_of(ids: NDArray[np.uint8]) -> Tensor:
    """The 16-byte ids of decisions ``(n, 16)`` as Philox counters ``(n, 4)`` int64."""
    return torch.from_numpy(np.ascontiguousarray(ids).view("<u4").astype(np.int64))
