"""A cohort: what was seen, given and survived, patient by patient, from a simulator or from records."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from core import files
from core.errors import InputError
from core.simulation import tree
from simulators.sepsis.features import ACTIONS, STATE, UNITS, Normalisation, feature_hash

if TYPE_CHECKING:
    from core.offline import OfflineDataset

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
FRACTIONS = (0.7, 0.15, 0.15)
"""Shares of the patients in ``SPLITS``."""
_AXES = {"state": "feature", "raw": "feature", "behaviour": "choice", "truth_score": "choice"}
_TYPES = {"state": torch.float32, "raw": torch.float32, "behaviour": torch.float32, "outcome": torch.float32}
_TYPES |= {"reward": torch.float32, "action": torch.int64, "split": torch.int64, "mask": torch.bool}


@dataclass(frozen=True)
class Steps:
    """The N valid decisions of a cohort (or of a split of it), patient by patient, step by step.

    Attributes:
        state: ``(N, 44)`` normalised.
        action: ``(N,)`` int64 in 0..24.
        patient: ``(N,)`` int64, row of the patient in the cohort.
        step: ``(N,)`` int64, 4 h each.
    """

    state: Tensor
    action: Tensor
    patient: Tensor
    step: Tensor

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True)
class Cohort:
    """P patients of at most T steps of 4 h; what lies behind a patient's last step is padding (zeros).

    Attributes:
        state: ``(P, T, 44)`` float32, normalised.
        action: ``(P, T)`` int64 in 0..24, fluid level * 5 + vasopressor level.
        mask: ``(P, T)`` bool, the step took place; each row is true up to the patient's last step.
        outcome: ``(P,)`` float32, +1 survived, -1 died.
        split: ``(P,)`` int64, 0 train, 1 validation, 2 test.
        raw: ``(P, T, 44)`` in units (``features.UNITS``); None where only normalised values are known.
        behaviour: ``(P, T, 25)`` probabilities of the behaviour policy; None where they are unknown.
        truth: what only a simulator knows, ``(P, T, ...)`` tensors by name, such as ``score`` ``(P, T, 25)``.
        normalisation: that made ``state`` of ``raw``; None if the file's own was kept.
        features: order of the features.
        origin: where it came from: ``source`` (``sepsis44``, ``icusepsis44``, ``mimic_sepsis``, ...), ``synthetic``
            (bool), and what else describes it (plain data).
    """

    state: Tensor
    action: Tensor
    mask: Tensor
    outcome: Tensor
    split: Tensor
    raw: Tensor | None = None
    behaviour: Tensor | None = None
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    normalisation: Normalisation | None = None
    features: tuple[str, ...] = STATE
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def patients(self) -> int:
        """Number P of patients."""
        return len(self.outcome)

    @property
    def lengths(self) -> Tensor:
        """``(P,)`` steps of each patient."""
        return self.mask.sum(1)

    def to(self, device: torch.device | str) -> Cohort:
        """The same on another device."""
        return tree.map_tensors(lambda x: x.to(device), self)

    def steps(self, split: Split | tuple[Split, ...] | None = None) -> Steps:
        """The decisions of a split, of several, or of all patients."""
        chosen = self._chosen(split)
        patient, step = chosen.nonzero(as_tuple=True)
        return Steps(self.state[chosen], self.action[chosen], patient, step)

    def flat(self, values: Tensor, split: Split | tuple[Split, ...] | None = None) -> Tensor:
        """``(N, ...)`` of ``values (P, T, ...)``, in the order of ``steps(split)``."""
        return values[self._chosen(split)]

    def padded(self, values: Tensor, split: Split | tuple[Split, ...] | None = None) -> Tensor:
        """``(P, T, ...)`` with ``values (N, ...)`` in the order of ``steps(split)``, zeros elsewhere.

        Raises:
            InputError: another number of rows than there are steps.
        """
        chosen = self._chosen(split)
        if len(values) != (count := int(chosen.sum())):
            raise InputError(f"values: {len(values)} rows; must be {count}, one a step")
        out = values.new_zeros(*self.mask.shape, *values.shape[1:])
        out[chosen] = values
        return out

    def rewards(self) -> Tensor:
        """``(P, T)`` float32: the outcome at the patient's last step, 0 elsewhere."""
        out = torch.zeros_like(self.mask, dtype=torch.float32)
        return out.scatter_(1, self.lengths.sub(1)[:, None], self.outcome.float()[:, None])

    def take(self, rows: Tensor) -> Cohort:
        """The patients ``rows`` (K,) int64, in that order."""
        return replace(
            self,
            state=self.state[rows],
            action=self.action[rows],
            mask=self.mask[rows],
            outcome=self.outcome[rows],
            split=self.split[rows],
            raw=None if self.raw is None else self.raw[rows],
            behaviour=None if self.behaviour is None else self.behaviour[rows],
            truth={name: value[rows] for name, value in self.truth.items()},
        )

    def subset(self, split: Split | tuple[Split, ...]) -> Cohort:
        """The patients of a split, or of several."""
        return self.take(self._member(split).nonzero()[:, 0])

    def dataset(
        self, rewards: Tensor, split: Split | tuple[Split, ...] | None = None, *, behaviour: bool = True
    ) -> OfflineDataset:
        """The decisions as one episode a patient, which terminates with the last step.

        Args:
            rewards: ``(P, T)``.
            split: of the patients; all if None.
            behaviour: give the probabilities of the behaviour policy along, where they are known.

        Raises:
            InputError: no step in the split, or rewards of another shape.
        """
        from core.offline import OfflineDataset

        if rewards.shape != self.mask.shape:
            raise InputError(f"rewards of shape {tuple(rewards.shape)}: must be {tuple(self.mask.shape)}")
        steps = self.steps(split)
        last = self.flat(torch.arange(self.mask.shape[1], device=self.mask.device) == self.lengths[:, None] - 1, split)
        following = torch.where(last[:, None], steps.state, steps.state.roll(-1, 0))
        known = self.behaviour if behaviour else None
        reach = max(1.0, float(steps.state.abs().max())) if len(steps) else 1.0
        return OfflineDataset(
            observations=steps.state,
            actions=steps.action,
            rewards=self.flat(rewards.to(steps.state), split),
            next_observations=following,
            terminated=last,
            truncated=torch.zeros_like(last),
            episode=steps.patient,
            step=steps.step,
            observation_space=Box(-math.ceil(reach), math.ceil(reach), (len(self.features),), np.float32),
            action_space=Discrete(ACTIONS),
            behaviour_probability=None if known is None else self.flat(known, split),
            name=str(self.origin.get("source", "cohort")),
        )

    def save(self, path: Path | str) -> None:
        """Write a NetCDF file atomically: everything here and the reward, and nothing that names a patient."""
        arrays = {name: getattr(self, name) for name in ("state", "action", "mask", "outcome", "split")}
        arrays |= {"reward": self.rewards(), "raw": self.raw, "behaviour": self.behaviour}
        arrays |= {f"truth_{name}": value for name, value in self.truth.items()}
        if self.normalisation is not None:
            arrays |= {f"normalisation_{name}": getattr(self.normalisation, name) for name in ("mean", "std")}
        data = {name: (_dims(name, value), value.cpu().numpy()) for name, value in arrays.items() if value is not None}
        origin = dict(self.origin)
        attributes = {
            "source": str(origin.get("source", "unknown")),
            "synthetic": str(bool(origin.get("synthetic", False))).lower(),
            "normalisation": "the source's own" if self.normalisation is None else "fitted to the training split",
            "split_seed": str(origin.get("split_seed", "unknown")),
            "feature_hash": feature_hash(self.features),
            "units": json.dumps({name: UNITS.get(name, "1") for name in self.features}),
            "origin": json.dumps(files.jsonable(origin)),
        }
        found = xr.Dataset(data, {"feature": list(self.features)}, attributes)
        # Padding and what stays with the patient compress to little.
        encoding = {name: {"zlib": True, "complevel": 1} for name, (dims, _) in data.items() if len(dims) > 1}
        files.write(Path(path), lambda whole: found.to_netcdf(whole, engine="h5netcdf", encoding=encoding))

    @staticmethod
    def load(path: Path | str) -> Cohort:
        """Read what ``save`` wrote.

        Raises:
            InputError: no such file, not such a file, an absent variable, features in another order, or as
                ``check_cohort``.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; a cohort is one NetCDF file")
        try:
            with xr.open_dataset(path, engine="h5netcdf", decode_timedelta=False) as opened:
                data = opened.load()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: not a NetCDF file ({str(error).splitlines()[0]})") from error
        needed = ("feature", "state", "action", "reward", "mask", "outcome", "split")
        if absent := [name for name in needed if name not in data]:
            raise InputError(f"{path}: no variable {', '.join(absent)}; a cohort has {', '.join(needed)}")
        features = tuple(map(str, data["feature"].values))
        _check_features(features, str(path))
        tensors = {str(name): _tensor(str(name), values.values, path) for name, values in data.data_vars.items()}
        scale = [tensors.get(f"normalisation_{name}") for name in ("mean", "std")]
        cohort = Cohort(
            **{name: tensors[name] for name in ("state", "action", "mask", "outcome", "split")},
            raw=tensors.get("raw"),
            behaviour=tensors.get("behaviour"),
            truth={name[6:]: value for name, value in tensors.items() if name.startswith("truth_")},
            normalisation=None if scale[0] is None or scale[1] is None else Normalisation(scale[0], scale[1]),
            features=features,
            origin=_origin(data.attrs, path),
        )
        check_cohort(cohort, str(path))
        reward = tensors["reward"]
        if reward.shape != cohort.mask.shape:
            raise InputError(f"{path}: reward has shape {tuple(reward.shape)}; must be {tuple(cohort.mask.shape)}")
        unlike = (reward != cohort.rewards()) & cohort.mask
        _refuse(unlike, str(path), "reward", reward, "the outcome at the patient's last step and 0 before")
        return cohort

    def _member(self, split: Split | tuple[Split, ...]) -> Tensor:
        names = (split,) if isinstance(split, str) else split
        if unknown := [name for name in names if name not in SPLITS]:
            raise InputError(f"split: {unknown[0]!r}; allowed: {', '.join(SPLITS)}")
        numbers = self.split.new_tensor([SPLITS.index(name) for name in names])
        return (self.split[:, None] == numbers).any(1)

    def _chosen(self, split: Split | tuple[Split, ...] | None) -> Tensor:
        return self.mask if split is None else self.mask & self._member(split)[:, None]


def split_patients(outcome: Tensor, seed: int, fractions: tuple[float, float, float] = FRACTIONS) -> Tensor:
    """``(P,)`` int64 split of each patient, drawn within the survivors and within the others.

    Args:
        outcome: ``(P,)``.
        seed: of the draw.
        fractions: shares of training, validation and test, which sum to 1; kept to a patient in each stratum.

    Raises:
        InputError: fractions that are negative or do not sum to 1.
    """
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1.0):
        raise InputError(f"fractions = {fractions}: must be at least 0 and sum to 1")
    generator = torch.Generator().manual_seed(seed)
    split = torch.zeros(len(outcome), dtype=torch.int64)
    for value in torch.unique(outcome.cpu()):
        rows = (outcome.cpu() == value).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        first, second = (round(share * len(rows)) for share in (fractions[0], fractions[0] + fractions[1]))
        split[rows[first:second]], split[rows[second:]] = 1, 2
    return split.to(outcome.device)


def check_cohort(cohort: Cohort, name: str) -> None:
    """Refuse a cohort from which nothing can be learned or that breaks its own rules.

    Args:
        cohort: any.
        name: of the file or of the source, for the message.

    Raises:
        InputError: shapes that do not fit, other features, a patient without steps or with a gap between them, a value
            that is not finite, an action outside 0..24, an outcome that is not +1 or -1, only one of both, or fewer
            than two different actions.
    """
    _check_features(cohort.features, name)
    if cohort.mask.dim() != 2 or not cohort.mask.numel():
        raise InputError(
            f"{name}: mask has shape {tuple(cohort.mask.shape)}; must be (patients, steps), each at least 1"
        )
    patients, steps = cohort.mask.shape
    within = (patients, steps)
    shapes: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "state": (cohort.state, (*within, len(STATE))),
        "action": (cohort.action, within),
        "outcome": (cohort.outcome, (patients,)),
        "split": (cohort.split, (patients,)),
        "raw": (cohort.raw, (*within, len(STATE))),
        "behaviour": (cohort.behaviour, (*within, ACTIONS)),
    }
    for field_name, (value, shape) in shapes.items():
        if value is not None and tuple(value.shape) != shape:
            raise InputError(f"{name}: {field_name} has shape {tuple(value.shape)}; must be {shape}")
    for field_name, value in cohort.truth.items():
        if tuple(value.shape[:2]) != within:
            raise InputError(f"{name}: truth_{field_name} has shape {tuple(value.shape)}; must be {within} and more")
    _refuse(~cohort.mask[:, 0], name, "mask", cohort.mask[:, 0], "true at the first step")
    gap = torch.zeros_like(cohort.mask)
    gap[:, 1:] = cohort.mask[:, 1:] & ~cohort.mask[:, :-1]
    _refuse(gap, name, "mask", cohort.mask, "true up to the patient's last step and false behind it")
    for field_name in ("state", "raw"):
        values = getattr(cohort, field_name)
        if values is not None:
            _refuse(~torch.isfinite(values) & cohort.mask[..., None], name, field_name, values, "finite")
    action = cohort.action
    _refuse(((action < 0) | (action >= ACTIONS)) & cohort.mask, name, "action", action, f"0 to {ACTIONS - 1}")
    _refuse(cohort.outcome.abs() != 1, name, "outcome", cohort.outcome, "+1 (survived) or -1 (died)")
    outside = (cohort.split < 0) | (cohort.split >= len(SPLITS))
    _refuse(outside, name, "split", cohort.split, "0 (train), 1 (validation) or 2 (test)")
    if cohort.behaviour is not None:
        odd = ((cohort.behaviour.sum(-1) - 1).abs() > 1e-3) & cohort.mask
        _refuse(odd, name, "behaviour", cohort.behaviour.sum(-1), "25 probabilities that sum to 1")
    if len(torch.unique(cohort.outcome)) < 2:
        raise InputError(f"{name}: every outcome is {int(cohort.outcome[0]):+d}; needs survivors and deaths")
    if len(torch.unique(action[cohort.mask])) < 2:
        raise InputError(f"{name}: every action is {int(action[0, 0])}; needs at least 2 different ones")


def _check_features(features: tuple[str, ...], name: str) -> None:
    for place, (found, wanted) in enumerate(zip_longest(features, STATE, fillvalue="nothing")):
        if found != wanted:
            raise InputError(f"{name}: feature {place} of {len(features)} is {found}; must be {wanted} of {len(STATE)}")


def _refuse(refused: Tensor, name: str, variable: str, values: Tensor, allowed: str) -> None:
    """Name the first entry ``(P[, T[, 44]])`` that is refused."""
    if not bool(refused.any()):
        return
    index = refused.nonzero()[0].tolist()
    words = [f"{axis} {i}" for axis, i in zip(("patient", "step"), index, strict=False)]
    words += [STATE[i] for i in index[2:]]
    value = values[tuple(index)].item()
    raise InputError(f"{name}: {variable}[{', '.join(words)}] = {value}; must be {allowed}")


def _dims(name: str, value: Tensor) -> tuple[str, ...]:
    if name.startswith("normalisation_"):
        return ("feature",)
    further = (_AXES[name],) if name in _AXES else tuple(f"{name}_{i}" for i in range(value.dim() - 2))
    return ("patient", "step", *further)[: value.dim()]


def _tensor(name: str, values: np.ndarray, path: Path) -> Tensor:
    wanted = _TYPES.get(name)
    kinds = "biuf" if wanted is None or wanted.is_floating_point else "biu"
    if values.dtype.kind not in kinds:
        raise InputError(f"{path}: {name} is {values.dtype}; must be {'numbers' if 'f' in kinds else 'whole numbers'}")
    return torch.from_numpy(values).to(wanted)


def _origin(attributes: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    try:
        origin = json.loads(attributes.get("origin", "{}"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the attribute origin is not JSON") from error
    if not isinstance(origin, dict):
        raise InputError(f"{path}: the attribute origin is not a JSON object")
    return origin
