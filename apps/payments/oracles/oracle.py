"""What every regression oracle is: settings that fit it, and a fitted model of all approval probabilities."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from apps.payments.oracles.rows import Rows, check_finite
from core import files
from core.errors import InputError
from core.study import Config
from simulators.payments.context import PaymentContext, Sizes


class OracleNotFitted(RuntimeError):
    """No model came of the rows; whoever deploys keeps the one before."""


class ConstantLabels(OracleNotFitted):
    """The rows have one label only (all approved, say), or there are none: they tell no action from another."""


class OracleDiverged(OracleNotFitted):
    """The loss was not finite, after smaller steps too."""


class OracleConfig(Config, ABC):
    """Which regression, and its numbers."""

    focal: ClassVar[bool] = False
    """It has the focal loss."""
    binary: ClassVar[bool] = False
    """It takes no reward between 0 and 1."""

    kind: str

    def fit(
        self,
        rows: Rows,
        sizes: Sizes,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        focus: float = 0.0,
        previous: Oracle[Any] | None = None,
    ) -> Oracle[Any]:
        """Learn from rows.

        Args:
            rows: n answered payments.
            sizes: of the portfolio.
            seed: of all that is random in the fit.
            device: where a network is trained.
            focus: exponent of the focal loss (Lin et al. 2017); 0 is the log-loss.
            previous: the model now deployed, for an oracle that goes on learning.

        Raises:
            InputError: rows that are refused (see ``Rows.check``), or a loss that this oracle does not have.
            MissingExtra: the oracle's library is not installed.
            ConstantLabels: the rows have one label only.
            OracleDiverged: the loss was not finite.
        """
        rows.check(sizes, binary=self.kind if self.binary else "")
        if not self.focal:
            self.without_focus(focus)
        check_labels(rows)
        return self._fit(rows, sizes, seed=seed, device=device, focus=focus, previous=previous)

    def without_focus(self, focus: float) -> None:
        """Refuse the focal loss.

        Raises:
            InputError: ``focus`` is not 0.
        """
        if focus:
            raise InputError(f"imbalance.method = focal: {self.kind} has no such loss; factored, mlp and hopfield do")

    def _fit(
        self,
        rows: Rows,
        sizes: Sizes,
        *,
        seed: int,
        device: torch.device | str,
        focus: float,
        previous: Oracle[Any] | None,
    ) -> Oracle[Any]:
        """Learn from rows that have been checked; each kind has this or its own ``fit``."""
        raise NotImplementedError

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor], extras: Mapping[str, Any], sizes: Sizes) -> Oracle[Any]:
        """The oracle of which ``state`` and ``extras`` were saved."""


Settings = TypeVar("Settings", bound=OracleConfig)


class Oracle(ABC, Generic[Settings]):
    """A fitted model f(x, a) of the approval probability of every action.

    Attributes:
        settings: it was fitted with.
        sizes: of the portfolio.
    """

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        self.settings, self.sizes = settings, sizes

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Number of free parameters."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The tensors that make the model."""

    def extras(self) -> dict[str, Any]:
        """JSON data that makes the model, beside the tensors."""
        return {}

    @abstractmethod
    def _approval(self, context: PaymentContext, dtype: torch.dtype) -> Tensor:
        """``(n, K)`` of a chunk of payments."""

    def _approval_of(self, context: PaymentContext, action: Tensor, dtype: torch.dtype) -> Tensor:
        """``(n,)`` of a chunk of payments and one action each."""
        return self._approval(context, dtype).gather(1, action.to(context.issuer.device)[:, None]).squeeze(1)

    def _chunk(self, device: torch.device) -> int:
        """Payments whose actions are predicted at once."""
        elements = 2**18 if device.type == "cpu" else 2**26  # what fits a core's cache, and what fills a GPU
        return max(1, elements // self.sizes.actions)

    def predict_all(self, context: PaymentContext, dtype: torch.dtype | None = None) -> Tensor:
        """Approval probability of every action, available or not ``(n, K)``, on the context's device.

        A level that was never seen has the effect of none. The memory of a chunk bounds the work space; when a device
        has less, the chunk is halved.

        Args:
            context: n payments.
            dtype: of the result, and of the arithmetic (a network's is float32); that of the context's numbers if not
                given.

        Raises:
            InputError: a number that is not finite; its column and row are named.
        """
        check_finite(context)
        precision = dtype or context.log_amount.dtype
        shape = (len(context), self.sizes.actions)
        return self._in_chunks(context, shape, precision, lambda part, _: self._approval(part, precision))

    def predict(self, context: PaymentContext, action: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Approval probability of one action a payment ``(n,)``; otherwise as ``predict_all``."""
        check_finite(context)
        precision = dtype or context.log_amount.dtype
        return self._in_chunks(
            context,
            (len(context),),
            precision,
            lambda part, rows: self._approval_of(part, action[rows], precision),
        )

    def _in_chunks(self, context: PaymentContext, shape: tuple[int, ...], dtype: torch.dtype, predict: Any) -> Tensor:
        result, start = torch.empty(0), 0
        chunk = self._chunk(context.log_amount.device)
        while start < len(context):
            rows = slice(start, start + chunk)
            try:
                part: Tensor = predict(context.take(rows), rows)
            except torch.OutOfMemoryError:
                if chunk == 1:
                    raise
                torch.cuda.empty_cache()
                chunk //= 2
                continue
            if len(part) == len(context):
                return part
            if start == 0:
                result = part.new_empty(shape)
            result[rows] = part
            start += chunk
        return result if len(context) else torch.empty(shape, dtype=dtype, device=context.log_amount.device)

    def save(self, directory: str | Path, **more: Any) -> None:
        """Write ``oracle.safetensors`` and ``oracle.json``, each whole or absent, into a folder (made if need be).

        The second names the checksum of the first, so that a folder with halves of two models is not loaded.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        weights = safetensors.torch.save({name: x.detach().cpu().contiguous() for name, x in self.state().items()})
        files.write(folder / "oracle.safetensors", weights)
        data = {
            "settings": self.settings.model_dump(mode="json"),
            "sizes": asdict(self.sizes),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "extras": self.extras(),
        }
        files.write_json(folder / "oracle.json", data | more)


def check_labels(rows: Rows) -> None:
    """Refuse rows of one label.

    Raises:
        ConstantLabels: no row of positive weight, or all of them with the same reward.
    """
    reward = rows.reward if rows.weight is None else rows.reward[rows.weight > 0]
    if not len(reward):
        raise ConstantLabels("no rows to learn from")
    if bool((reward == reward[0]).all()):
        raise ConstantLabels(f"all {len(reward)} rows have the reward {reward[0].item():g}: nothing to learn from")
