"""The only way to a subject: an instrument that delivers what is asked for, and writes down every request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from core.errors import InputError
from simulators.mri.acquisition_noise import Imperfections, shifted, t2_decay
from simulators.mri.coils import noise_factor
from simulators.mri.operators import KSpaceLines, MulticoilLines, Operator

# Which requests come back empty: how many attempts at (subject, action) fail, or whether (subject, action, attempt)
# does, attempts counted from 0.
Drops = Mapping[tuple[int, int], int] | Callable[[int, int, int], bool]


class Instrument(ABC):
    """A batch of subjects whose samples are had by asking, action by action.

    Attributes:
        operator: what is measured.
        available: bool (S, A), which actions can be asked for.
    """

    def __init__(self, operator: Operator, available: Tensor, drops: Drops | None = None) -> None:
        self.operator = operator
        self.available = available
        self._drops = drops
        self._log: list[tuple[Tensor, Tensor]] = []
        self._counts = torch.zeros_like(available, dtype=torch.int64)
        self._acquired = torch.zeros_like(available)
        self._measured: Tensor | None = None

    @property
    def subjects(self) -> int:
        """Number of subjects S."""
        return len(self.available)

    @property
    def counts(self) -> Tensor:
        """How often each action was asked for: (S, A), int64."""
        return self._counts.clone()

    @property
    def requests(self) -> list[list[int]]:
        """The actions that were asked for, in order, of each subject; repeated ones and dropped ones included."""
        lists: list[list[int]] = [[] for _ in range(self.subjects)]
        for rows, actions in self._log:
            for row, asked in zip(rows.tolist(), actions.tolist(), strict=True):
                lists[row].extend(asked)
        return lists

    def acquire(self, actions: Tensor, subjects: Tensor | None = None) -> Tensor:
        """The samples of the actions asked for, as the instrument delivers them; NaN where a request was dropped.

        Args:
            actions: int64 (K,), one action for each subject, or (K, n).
            subjects: int64 (K,), different rows of the batch; None: all S of them in order.

        Returns:
            (K, [n,] ...) in the layout of ``operator.samples``: of k-space lines complex (K, [n,] H), of several coils
            (K, [n,] coils, H); of pixels real (K, [n,] C).

        Raises:
            InputError: a request that is not an integer, out of range, of the wrong shape, or not available.
        """
        rows = self._rows(subjects)
        self._check(actions, rows)
        asked = actions if actions.dim() == 2 else actions[:, None]
        place = (rows[:, None], asked)
        components = self.operator.components(self._deliver(rows, asked))
        dropped = self._dropped(rows, asked)
        if self._measured is None:
            self._measured = components.new_zeros(*self.available.shape, components.shape[-1])
        self._measured[place] = torch.where(dropped[..., None], self._measured[place], components)
        self._acquired[place] |= ~dropped
        self._counts[place] += 1
        self._log.append((rows, asked.clone()))
        samples = self.operator.samples(torch.where(dropped[..., None], torch.nan, components))
        return samples if actions.dim() == 2 else samples[:, 0]

    def measured(self) -> tuple[Tensor, Tensor]:
        """What was delivered so far: real components (S, A, R), zero elsewhere, and the mask (S, A) of what they hold.

        Of an action that was delivered twice, the last answer.

        Raises:
            InputError: nothing was asked for yet.
        """
        if self._measured is None:
            raise InputError("measured: nothing was acquired yet")
        return self._measured.clone(), self._acquired.clone()

    @abstractmethod
    def _deliver(self, rows: Tensor, actions: Tensor) -> Tensor:
        """Samples (K, n, ...) of actions (K, n) of the subjects ``rows`` (K,)."""

    def _rows(self, subjects: Tensor | None) -> Tensor:
        if subjects is None:
            return torch.arange(self.subjects, device=self.available.device)
        if subjects.dim() != 1 or subjects.dtype != torch.int64:
            raise InputError(f"subjects of shape {tuple(subjects.shape)}, {subjects.dtype}: must be int64 (K,)")
        if bool(((subjects < 0) | (subjects >= self.subjects)).any()) or len(subjects.unique()) != len(subjects):
            raise InputError(f"subjects {subjects.tolist()}: must be different and between 0 and {self.subjects - 1}")
        return subjects

    def _check(self, actions: Tensor, rows: Tensor) -> None:
        if actions.dtype != torch.int64 or actions.dim() not in (1, 2) or len(actions) != len(rows):
            raise InputError(
                f"actions of shape {tuple(actions.shape)}, {actions.dtype}: must be int64 ({len(rows)},) "
                f"or ({len(rows)}, n)"
            )
        last = self.operator.actions - 1
        wrong = (actions < 0) | (actions > last)
        if bool(wrong.any()):
            raise InputError(f"action {int(actions[wrong][0])}: must be between 0 and {last}")
        absent = ~self.available[rows[:, None], actions.reshape(len(rows), -1)]
        if bool(absent.any()):
            k, i = absent.nonzero()[0].tolist()
            action = int(actions.reshape(len(rows), -1)[k, i])
            raise InputError(f"action {action} of subject {int(rows[k])}: was never recorded and cannot be acquired")

    def _dropped(self, rows: Tensor, actions: Tensor) -> Tensor:
        if self._drops is None:
            return torch.zeros_like(actions, dtype=torch.bool)
        attempts = self._counts[rows[:, None], actions].tolist()
        drops = self._drops
        fails = drops if callable(drops) else lambda subject, action, attempt: attempt < drops.get((subject, action), 0)
        table = [
            [fails(row, action, attempt) for action, attempt in zip(asked, tried, strict=True)]
            for row, asked, tried in zip(rows.tolist(), actions.tolist(), attempts, strict=True)
        ]
        return torch.tensor(table, dtype=torch.bool, device=actions.device).reshape(actions.shape)


class Scanner(Instrument):
    """Simulated subjects: ideal samples, what imperfections make of them, and new noise at every request.

    A subject's randomness comes from its own generator only, so a batch equals its single subjects.

    Args:
        operator: what is measured.
        target: the subjects' images (S, C, H, W), finite; they are had through ``acquire`` only.
        sigma_n: standard deviation of the noise of each real component, one number or (S,).
        imperfections: what else happens to k-space lines; None: nothing.
        generators: one per subject; needed where anything is random.
        drops: requests that come back as NaN, for tests of what asks.

    Raises:
        InputError: a target that is not finite or not of the operator's shape; a negative sigma_n; imperfections of
            anything but k-space lines, or of another number of coils; randomness without one generator per subject.
    """

    def __init__(
        self,
        operator: Operator,
        target: Tensor,
        *,
        sigma_n: float | Tensor = 0.0,
        imperfections: Imperfections | None = None,
        generators: Sequence[torch.Generator] | None = None,
        drops: Drops | None = None,
    ) -> None:
        if tuple(target.shape[1:]) != operator.shape or target.dim() != 4:
            raise InputError(
                f"target of shape {tuple(target.shape)}: must be (S, {', '.join(map(str, operator.shape))})"
            )
        if not bool(torch.isfinite(target).all()):
            raise InputError("target: has values that are not finite")
        sigma = torch.as_tensor(sigma_n, dtype=target.dtype, device=target.device)
        if (
            sigma.dim() > 1
            or sigma.numel() not in (1, len(target))
            or not bool(((sigma >= 0) & sigma.isfinite()).all())
        ):
            raise InputError(f"sigma_n = {sigma.tolist()}: must be finite and >= 0, one number or one per subject")
        self._sigma = sigma.expand(len(target))
        self._imperfections = _checked(imperfections or Imperfections(), operator)
        self._noisy = bool((sigma > 0).any())
        self._moving = self._imperfections.shift_std > 0
        if (self._noisy or self._moving) and (generators is None or len(generators) != len(target)):
            given = "none" if generators is None else str(len(generators))
            raise InputError(f"generators: {given} given, noise and motion need one for each of {len(target)} subjects")
        self._generators = generators or ()
        everything = torch.ones(len(target), operator.actions, dtype=torch.bool, device=target.device)
        super().__init__(operator, everything, drops)
        with torch.no_grad():
            self.__components = self._decayed(operator.forward(target))
        covariance = self._imperfections.coil_covariance
        self._coil_factor = None if covariance is None else noise_factor(covariance).to(target.device, _complex(target))

    def _decayed(self, components: Tensor) -> Tensor:
        train = self._imperfections
        if train.echo_spacing == 0:
            return components
        line = torch.arange(self.operator.actions, device=components.device, dtype=components.dtype)
        return components * t2_decay(line, self.operator.center or 0, train.echo_spacing, train.t2)[:, None]

    def _deliver(self, rows: Tensor, actions: Tensor) -> Tensor:
        ideal = self.__components[rows[:, None], actions]
        samples = self.operator.samples(ideal)
        if not (self._noisy or self._moving):
            return samples
        luck = self._normals(rows, actions.shape[1], ideal.shape[-1] + 2 * self._moving).to(ideal)
        if self._moving:
            luck, place = luck[..., :-2], luck[..., -2:] * self._imperfections.shift_std
            samples = shifted(samples, actions, place, self.operator.shape[2])
        noise = self.operator.samples(luck * self._sigma[rows, None, None])
        return samples + (noise if self._coil_factor is None else self._coil_factor @ noise)

    def _normals(self, rows: Tensor, requests: int, numbers: int) -> Tensor:
        generators = [self._generators[row] for row in rows.tolist()]
        return torch.stack([torch.randn(requests, numbers, generator=g, device=g.device) for g in generators])


class RecordedScanner(Instrument):
    """Subjects whose samples were recorded once, perhaps not all of them: real data, answered as they are.

    Args:
        operator: what was measured.
        components: (S, A, R), real; what is not available is never looked at.
        available: bool (S, A), what was recorded.
        drops: requests that come back as NaN, for tests of what asks.

    Raises:
        InputError: shapes that do not agree, nothing available, or recorded values that are not finite.
    """

    def __init__(self, operator: Operator, components: Tensor, available: Tensor, drops: Drops | None = None) -> None:
        if components.dim() != 3 or components.shape[1] != operator.actions or components.is_complex():
            raise InputError(
                f"components of shape {tuple(components.shape)}, {components.dtype}: must be real "
                f"(S, {operator.actions}, R)"
            )
        if (
            available.shape != components.shape[:2]
            or available.dtype != torch.bool
            or not bool(available.any(-1).all())
        ):
            raise InputError(
                f"available of shape {tuple(available.shape)}, {available.dtype}: must be bool "
                f"{tuple(components.shape[:2])} with something available of each subject"
            )
        recorded = torch.where(available[..., None], components, 0)
        if not bool(torch.isfinite(recorded).all()):
            raise InputError("components: recorded values that are not finite")
        super().__init__(operator, available.clone(), drops)
        self.__components = recorded

    def _deliver(self, rows: Tensor, actions: Tensor) -> Tensor:
        return self.operator.samples(self.__components[rows[:, None], actions])


def _complex(like: Tensor) -> torch.dtype:
    return torch.complex128 if like.dtype == torch.float64 else torch.complex64


def _checked(imperfections: Imperfections, operator: Operator) -> Imperfections:
    lines = isinstance(operator, KSpaceLines | MulticoilLines)
    if not lines and imperfections != Imperfections():
        raise InputError(f"imperfections: are those of k-space lines, the operator is {type(operator).__name__}")
    covariance = imperfections.coil_covariance
    coils = operator.coils if isinstance(operator, MulticoilLines) else 1
    if covariance is not None and (not isinstance(operator, MulticoilLines) or len(covariance) != coils):
        raise InputError(f"coil_covariance of {len(covariance)} coils: the operator has {coils}")
    return imperfections
