"""The small sepsis world of Oberst and Sontag (2019), with its transition matrix written down exactly.

"Counterfactual Off-Policy Evaluation with Gumbel-Max Structural Causal Models", ICML 2019, section 6, by the rules of
the authors' code (clinicalml/gumbel-max-scm): four vital signs, three treatments and a diabetes that the agent does not
see. Given the treatments before and now and the diabetes, each vital sign moves on its own. A step is thus four small
tables, from which both the samples and the matrix of all 1440 states come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from core.errors import InputError
from core.simulation import Step, Variable

ANTIBIOTIC, VASOPRESSOR, VENTILATION = 4, 2, 1
"""Digits of the treatments in a state's index; an action is 4 antibiotic + 2 ventilation + vasopressor."""
NORMAL = (1, 1, 1, 2)
"""Normal level of heart rate, blood pressure, oxygen and glucose."""
OBSERVED, STATES, ACTIONS, HORIZON = 720, 1440, 8, 20
"""States seen, states with the diabetes, actions, and the steps after which a view truncates."""
_LEVELS = (3, 3, 2, 5)
_SIGNS, _TREATMENTS = 90, 8


@dataclass(frozen=True)
class GumbelState:
    """Patients in care.

    Attributes:
        index: ``(B,)`` int64 in 0..1439; mixed radix of diabetes, heart rate, blood pressure, oxygen, glucose,
            antibiotic, vasopressor and ventilation.
    """

    index: Tensor


@dataclass(frozen=True)
class GumbelNoise:
    """``uniform`` ``(B, 4)``, one a vital sign."""

    uniform: Tensor


@dataclass(frozen=True)
class GumbelSepsis:
    """Treat until the patient is well without treatment (+1) or has three abnormal vital signs (-1).

    Attributes:
        diabetes: share of patients with diabetes.
        glucose_cap_bug: the glucose of a patient without diabetes rises by chance to level 1 at most, and falls to it
            from above, as in the authors' code; for replication.

    Raises:
        InputError: a share outside [0, 1].
    """

    diabetes: float = 0.2
    glucose_cap_bug: bool = False

    agents = 1
    observation_space = Discrete(OBSERVED)
    action_space = Discrete(ACTIONS)
    variables: ClassVar[Mapping[str, Variable]] = {
        "index": Variable((), "1", "state with the diabetes"),
        "action": Variable((), "1", "4 antibiotic + 2 ventilation + vasopressor"),
        "reward": Variable((), "1", "discharge +1, death -1"),
    }

    def __post_init__(self) -> None:
        if not 0 <= self.diabetes <= 1:
            raise InputError(f"diabetes = {self.diabetes}: must be a share in [0, 1]")

    @cached_property
    def _tables(self) -> list[Tensor]:
        """Of each vital sign ``(2, 8, 8, n, n)`` float64: diabetes, treatments before, action, from, to."""
        contexts = [(d, before, a) for d in (0, 1) for before in range(_TREATMENTS) for a in range(ACTIONS)]
        kernels = zip(*(self._kernels(*context) for context in contexts), strict=True)
        return [torch.stack(k).view(2, _TREATMENTS, ACTIONS, *k[0].shape) for k in kernels]

    def _kernels(self, diabetes: int, before: int, action: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tables of the four vital signs in one context: treatments in order, then what happens by chance."""
        now = _treatments(action)
        antibiotic, vasopressor, ventilation = (
            "on" if now & digit else "withdrawn" if before & digit else "off"
            for digit in (ANTIBIOTIC, VASOPRESSOR, VENTILATION)
        )
        infection = {"on": {(2, 1): 0.5}, "withdrawn": {(1, 2): 0.1}, "off": {}}[antibiotic]
        heart_rate = _moves(3, infection)
        if antibiotic == "off":
            heart_rate @= _chance(3, 0.1)
        raised = {(1, 2): 0.9, (0, 1): 0.5, (0, 2): 0.4} if diabetes else {(0, 1): 0.7, (1, 2): 0.7}
        falls = 0.05 if diabetes else 0.1
        pressor = {"on": raised, "withdrawn": {(2, 1): falls, (1, 0): falls}, "off": {}}[vasopressor]
        blood_pressure = _moves(3, infection) @ _moves(3, pressor)
        if antibiotic == vasopressor == "off":
            blood_pressure @= _chance(3, 0.1)
        oxygen = _moves(2, {"on": {(0, 1): 0.7}, "withdrawn": {(1, 0): 0.1}, "off": {}}[ventilation])
        if ventilation == "off":
            oxygen @= _chance(2, 0.1)
        if vasopressor != "on":
            highest = 1 if self.glucose_cap_bug and not diabetes else 4
            glucose = _chance(5, 0.3 if diabetes else 0.1, highest)
        else:
            glucose = _moves(5, {(i, i + 1): 0.5 for i in range(4)} if diabetes else {})
        return heart_rate, blood_pressure, oxygen, glucose

    @cached_property
    def _joint(self) -> Tensor:
        """``(2, 8, 8, 90, 90)`` float64: the four tables as one of all vital signs."""
        joint = torch.einsum("dtaij,dtakl,dtamn,dtaop->dtaikmojlnp", *self._tables)
        return joint.reshape(2, _TREATMENTS, ACTIONS, _SIGNS, _SIGNS)

    @cached_property
    def transition(self) -> Tensor:
        """``(8, 1440, 1440)`` float64, P[a, s, s'] as if no state ended the episode; rows sum to 1."""
        P = torch.zeros(ACTIONS, 2, _SIGNS, _TREATMENTS, 2, _SIGNS, _TREATMENTS, dtype=torch.float64)
        for a in range(ACTIONS):
            for d in (0, 1):
                P[a, d, :, :, d, :, _treatments(a)] = self._joint[d, :, a].transpose(0, 1)
        return P.view(ACTIONS, STATES, STATES)

    @cached_property
    def _cumulative(self) -> Tensor:
        """``(128, 4, 5, 5)`` float32 distribution functions: context, vital sign, from, to."""
        cdf = torch.ones(2 * _TREATMENTS * ACTIONS, len(_LEVELS), max(_LEVELS), max(_LEVELS))
        for i, (table, n) in enumerate(zip(self._tables, _LEVELS, strict=True)):
            cdf[:, i, :n, : n - 1] = table.flatten(0, 2).cumsum(-1)[..., :-1].float()
        return cdf

    @cached_property
    def start(self) -> Tensor:
        """``(1440,)`` float64 distribution of the first state: untreated, neither well nor dead."""
        vitals = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
        oxygen = torch.tensor([0.2, 0.8], dtype=torch.float64)
        glucose = torch.tensor([[0.05, 0.15, 0.6, 0.15, 0.05], [0.01, 0.05, 0.15, 0.6, 0.19]], dtype=torch.float64)
        share = torch.tensor([1 - self.diabetes, self.diabetes], dtype=torch.float64)
        drawn = torch.zeros(2, _SIGNS, _TREATMENTS, dtype=torch.float64)
        drawn[..., 0] = torch.einsum("d,i,j,k,dl->dijkl", share, vitals, vitals, oxygen, glucose).flatten(1)
        drawn = drawn.flatten().masked_fill(self.rewards != 0, 0.0)
        return drawn / drawn.sum()

    @cached_property
    def rewards(self) -> Tensor:
        """``(1440,)`` float64 reward of reaching a state; a state ends the episode where it is not 0."""
        _, signs, treatments = _digits(torch.arange(STATES))
        abnormal = (signs != torch.tensor(NORMAL)).sum(1)
        discharge = (abnormal == 0) & (treatments == 0)
        return discharge.double() - (abnormal >= 3).double()

    def reset(self, batch: int, generator: torch.Generator) -> GumbelState:
        """Patients at the start of care."""
        uniform = torch.rand(batch, generator=generator, device=generator.device)
        cdf = self.start.cumsum(0).float().to(generator.device)
        # Rounding must not leave a uniform behind the last possible state.
        return GumbelState(torch.searchsorted(torch.where(cdf > 1 - 1e-6, 1.0, cdf), uniform, right=True))

    def noise(self, batch: int, generator: torch.Generator) -> GumbelNoise:
        """Draw what is random in one step of ``batch`` patients."""
        return GumbelNoise(torch.rand(batch, len(_LEVELS), generator=generator, device=generator.device))

    def step(self, state: GumbelState, action: Tensor, noise: GumbelNoise) -> Step:
        """One step of treatment.

        Args:
            state: B patients.
            action: ``(B,)`` int64 in 0..7.
            noise: of B patients.

        Raises:
            InputError: an action of another shape or outside 0..7.
        """
        if action.shape != state.index.shape or bool(((action < 0) | (action >= ACTIONS)).any()):
            raise InputError(f"action of shape {tuple(action.shape)}: must be ({len(state.index)},) integers in 0..7")
        diabetes, signs, before = _digits(state.index)
        context = ((diabetes * _TREATMENTS + before) * ACTIONS + action).unsqueeze(1)
        cdf = self._cumulative.to(signs.device)[context, torch.arange(len(_LEVELS), device=signs.device), signs]
        signs = (noise.uniform.unsqueeze(-1) >= cdf).sum(-1)
        index = diabetes
        for sign, n in zip(signs.unbind(1), _LEVELS, strict=True):
            index = index * n + sign
        index = index * _TREATMENTS + _treatments(action)
        reward = self.rewards.float().to(index.device)[index]
        return Step(GumbelState(index), reward, reward != 0)

    def observe(self, state: GumbelState, noise: GumbelNoise | None) -> Tensor:
        """``(B,)`` int64 in 0..719, the state without the diabetes."""
        return state.index % OBSERVED

    def action_mask(self, state: GumbelState) -> Tensor | None:
        """Every action is allowed."""
        return None

    def value_iteration(
        self, gamma: float = 0.99, horizon: int | None = None, tolerance: float = 1e-10
    ) -> tuple[Tensor, Tensor]:
        """Best expected return of an agent that knows the diabetes.

        Args:
            gamma: discount of a step.
            horizon: steps that are left; None for any number.
            tolerance: largest change of a value in the last sweep, where there is no horizon.

        Returns:
            Q ``(1440, 8)`` and V ``(1440,)`` float64; 0 in the states that end the episode.

        Raises:
            InputError: a discount outside [0, 1], or a horizon below 1.
        """
        _check(gamma, horizon)
        value = torch.zeros(STATES, dtype=torch.float64)
        sweep = 0
        while True:
            q = self._look_ahead(value, gamma)
            before, value, sweep = value, q.amax(1), sweep + 1
            if sweep == horizon or (horizon is None and bool((value - before).abs().max() <= tolerance)):
                return q, value

    def policy_value(self, policy: Tensor, gamma: float = 1.0, horizon: int = HORIZON) -> float:
        """Exact expected return of a policy from the start.

        Args:
            policy: ``(720, 8)`` probabilities by observed state, or ``(1440, 8)`` by state.
            gamma: discount of a step.
            horizon: steps of an episode.

        Raises:
            InputError: another shape, rows that do not sum to 1, a discount outside [0, 1], or a horizon below 1.
        """
        _check(gamma, horizon)
        if policy.shape not in ((OBSERVED, ACTIONS), (STATES, ACTIONS)) or bool(
            ((policy.sum(1) - 1).abs() > 1e-4).any() | (policy < 0).any()
        ):
            raise InputError(f"policy of shape {tuple(policy.shape)}: must be (720, 8) or (1440, 8), rows summing to 1")
        rows = policy.double().repeat(STATES // len(policy), 1)
        value = torch.zeros(STATES, dtype=torch.float64)
        for _ in range(horizon):
            value = (rows * self._look_ahead(value, gamma)).sum(1)
        return float(self.start @ value)

    def _look_ahead(self, value: Tensor, gamma: float) -> Tensor:
        """``(1440, 8)`` reward of a step and discounted value behind it."""
        # The treatments after a step are its action's, so 1/16 of the matrix says it all.
        ahead = (self.rewards + gamma * value).view(2, _SIGNS, _TREATMENTS)[..., _treatments(torch.arange(ACTIONS))]
        q = torch.einsum("dtasu,dua->dsta", self._joint, ahead).reshape(STATES, ACTIONS)
        return q.masked_fill((self.rewards != 0).unsqueeze(1), 0.0)


def _digits(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Diabetes ``(B,)``, vital signs ``(B, 4)`` and treatments ``(B,)`` of states ``(B,)``."""
    signs, rest = [], index // _TREATMENTS
    for n in reversed(_LEVELS):
        signs.append(rest % n)
        rest = rest // n
    return rest, torch.stack(signs[::-1], dim=1), index % _TREATMENTS


def _treatments(action: Any) -> Any:
    """The treatments' digits of an action, in which vasopressor and ventilation stand the other way round."""
    return (action & 4) | (action & 1) << 1 | (action & 2) >> 1


def _moves(levels: int, moves: Mapping[tuple[int, int], float]) -> Tensor:
    """A stochastic matrix that moves with the given probabilities and else stays."""
    matrix = torch.eye(levels, dtype=torch.float64)
    for (old, new), probability in moves.items():
        matrix[old, new] += probability
        matrix[old, old] -= probability
    return matrix


def _chance(levels: int, probability: float, highest: int | None = None) -> Tensor:
    """One level down, or one up but to ``highest`` at most, each with the given probability."""
    matrix = torch.eye(levels, dtype=torch.float64) * (1 - 2 * probability)
    for old in range(levels):
        matrix[old, max(old - 1, 0)] += probability
        matrix[old, min(old + 1, levels - 1 if highest is None else highest)] += probability
    return matrix


def _check(gamma: float, horizon: int | None) -> None:
    if not 0 <= gamma <= 1 or (horizon is not None and horizon < 1):
        raise InputError(f"gamma = {gamma}, horizon = {horizon}: must be in [0, 1], and at least 1")
