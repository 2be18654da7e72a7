"""ICU-Sepsis, a Markov decision process counted in real intensive care, seen through 44 noisy features.

The chain is version 2 of Choudhary, Gupta and Thomas (2024), "ICU-Sepsis: A Benchmark MDP Built from Real Medical
Data", Reinforcement Learning Conference: 713 clusters of patients in care, death, survival and a sink, counted in
MIMIC-III. The value of every policy of the hidden state is exact, and so is the best one. The features that the agent
sees scatter around the centroid of the hidden cluster as patients of a cohort do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from core.errors import InputError
from core.seeds import stream
from core.simulation import Policy, Step, Variable, tree
from simulators.sepsis.cohort import FRACTIONS, Cohort, split_patients
from simulators.sepsis.features import ACTIONS, CENTRED, COHORT_COLUMNS, STATE

LIVING = 713
"""Hidden states 0..712 are patients in care."""
DEATH, SURVIVAL, SINK = 713, 714, 715
PERSISTENT = 0.7
"""Share of the variance of the scatter that stays with the patient."""
BINARY = torch.tensor([name in CENTRED for name in STATE])
REACH = 8.0
"""Bound of the observation space beyond the centroids, standard deviations."""


@dataclass(frozen=True)
class Dynamics:
    """The parameters of the chain, S = 716 states and A = 25 actions.

    Attributes:
        transition: ``(S, A, S)`` float64, P[s, a, s'].
        start: ``(S,)`` float64.
        clinician: ``(S, A)`` float64; what the clinicians did, zero in the last three states.
        centroid: ``(S, 44)`` float32, normalised features.
        spread: ``(44,)`` float32; standard deviation of a feature inside a cluster, from its variance in the cohort (1
            after normalisation) less that between the centroids where the clinicians lead.
    """

    transition: Tensor
    start: Tensor
    clinician: Tensor
    centroid: Tensor
    spread: Tensor

    @cached_property
    def cumulative(self) -> Tensor:
        """``(S * A, S)`` float32 distribution functions of the next state."""
        return _distribution(self.transition).flatten(0, 1)

    @cached_property
    def _copies(self) -> dict[torch.device, Dynamics]:
        return {self.transition.device: self}

    def to(self, device: torch.device | str) -> Dynamics:
        """The same on a device, where what is derived from it is kept as well."""
        device = torch.device(device)
        if device not in self._copies:
            self._copies[device] = tree.map_tensors(lambda x: x.to(device), self)
        return self._copies[device]

    @cached_property
    def optimum(self) -> tuple[Tensor, Tensor]:
        """Q ``(S, A)`` and V ``(S,)`` float64 by value iteration."""
        transition = self.transition[:LIVING, :, :LIVING].flatten(0, 1).contiguous()
        reward = self.transition[:LIVING, :, SURVIVAL].flatten()
        value, change = transition.new_zeros(LIVING), math.inf
        while change > 1e-10:
            q = (reward + transition @ value).view(LIVING, ACTIONS)
            value, before = q.amax(1), value
            change = float((value - before).abs().max())
        return torch.cat([q, q.new_zeros(3, ACTIONS)]), torch.cat([value, value.new_zeros(3)])


@cache
def dynamics() -> Dynamics:
    """The shipped parameters, read once."""
    with np.load(Path(__file__).parent / "data" / "icu_sepsis_v2_dynamics.npz", allow_pickle=False) as data:
        arrays = {name: torch.from_numpy(data[name]).double() for name in data.files}
    transition = arrays["tx_mat"] / arrays["tx_mat"].sum(-1, keepdim=True)  # stored in float32: rows are 1 within 1e-5
    start = arrays["d_0"] / arrays["d_0"].sum()
    clinician = arrays["expert_policy"]
    clinician = clinician / clinician.sum(1, keepdim=True).clamp(min=1e-12)
    centroid = arrays["state_cluster_centers"][:, [COHORT_COLUMNS.index(name) for name in STATE]]
    chain = torch.einsum("sa,sat->st", clinician, transition)[:LIVING, :LIVING]
    visits = torch.linalg.solve(torch.eye(LIVING).double() - chain.T, start[:LIVING])
    share = (visits / visits.sum()).unsqueeze(1)
    mean = (share * centroid[:LIVING]).sum(0)
    between = (share * (centroid[:LIVING] - mean) ** 2).sum(0)
    within = torch.maximum(1 - between, 0.05 * between.clamp(min=1))
    return Dynamics(transition, start, clinician, centroid.float(), within.sqrt().float())


@dataclass(frozen=True)
class ICUSepsisState:
    """Patients in care.

    Attributes:
        z: ``(B,)`` int64 hidden state.
        patient: ``(B, 44)`` standard normals that stay with the patient.
        observation: ``(B, 44)`` normalised features.
    """

    z: Tensor
    patient: Tensor
    observation: Tensor


@dataclass(frozen=True)
class ICUSepsisNoise:
    """All that is random in a step: ``(B,)`` uniform of the transition, ``(B, 44)`` normals of the observation."""

    transition: Tensor
    observation: Tensor


@dataclass(frozen=True)
class ICUSepsis44:
    """ICU-Sepsis with features: x = C[z] + kappa sd (sqrt(.7) u + sqrt(.3) n_t), u of the patient, n_t of the step.

    Gender and mechanical ventilation are +-0.5, drawn with the centroid's share from the same normals. The reward is 1
    for survival; nothing is discounted and the chain ends by itself, so a return is a probability of survival.

    Attributes:
        kappa: scatter of the features; at 0.25 the nearest centroid is the hidden state, at 1 in four of five cases.
        dynamics: the chain; the shipped one if None.

    Raises:
        InputError: a negative or infinite ``kappa``.
    """

    kappa: float = 1.0
    dynamics: Dynamics = field(default=None, repr=False)  # type: ignore[assignment]

    agents = 1
    action_space = Discrete(ACTIONS)

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < math.inf:
            raise InputError(f"kappa = {self.kappa}: must be at least 0 and finite")
        if self.dynamics is None:
            object.__setattr__(self, "dynamics", dynamics())

    @cached_property
    def observation_space(self) -> Box:
        """44 normalised features."""
        bound = self._bound.cpu().numpy()
        return Box(-bound, bound, dtype=np.float32)

    @cached_property
    def variables(self) -> Mapping[str, Variable]:
        """What a roll-out records."""
        return {
            "observation": Variable(("feature",), "1", "normalised features", {"feature": STATE}),
            "z": Variable((), "1", "hidden state"),
            "action": Variable((), "1", "5 * fluid level + vasopressor level"),
            "reward": Variable((), "1", "survived"),
        }

    @cached_property
    def _threshold(self) -> Tensor:
        """``(S, 44)`` normal below which a binary feature is present."""
        return torch.special.ndtri((self.dynamics.centroid + 0.5).clamp(0, 1))

    @cached_property
    def _bound(self) -> Tensor:
        bound = self.dynamics.centroid.abs().amax(0) + REACH * self.kappa * self.dynamics.spread
        return torch.where(BINARY.to(bound.device), 0.5, bound)

    def on(self, device: torch.device | str) -> ICUSepsis44:
        """The same world with its parameters on ``device``."""
        return replace(self, dynamics=self.dynamics.to(device))

    def reset(self, batch: int, generator: torch.Generator) -> ICUSepsisState:
        """Patients at the start of care; the generator's device must be that of the world (``on``)."""
        uniform = torch.rand(batch, generator=generator, device=generator.device)
        z = torch.searchsorted(_distribution(self.dynamics.start), uniform, right=True)
        patient = torch.randn(batch, len(STATE), generator=generator, device=generator.device)
        return self._seen(z, patient, self.noise(batch, generator).observation)

    def noise(self, batch: int, generator: torch.Generator) -> ICUSepsisNoise:
        """Draw what is random in one step of ``batch`` patients."""
        shape: dict[str, Any] = {"generator": generator, "device": generator.device}
        return ICUSepsisNoise(torch.rand(batch, **shape), torch.randn(batch, len(STATE), **shape))

    def step(self, state: ICUSepsisState, action: Tensor, noise: ICUSepsisNoise) -> Step:
        """Four hours of treatment.

        Args:
            state: B patients.
            action: ``(B,)`` int64 in 0..24.
            noise: of B patients.

        Returns:
            Step with info ``died`` ``(B,)`` bool.

        Raises:
            InputError: an action of another shape or outside 0..24.
        """
        if action.shape != state.z.shape or bool(((action < 0) | (action >= ACTIONS)).any()):
            raise InputError(f"action of shape {tuple(action.shape)}: must be ({len(state.z)},) integers in 0..24")
        rows = self.dynamics.cumulative[state.z * ACTIONS + action]
        z = torch.searchsorted(rows, noise.transition.unsqueeze(1), right=True).squeeze(1)
        following = self._seen(z, state.patient, noise.observation)
        return Step(following, (z == SURVIVAL).float(), z >= LIVING, {"died": z == DEATH})

    def _seen(self, z: Tensor, patient: Tensor, normals: Tensor) -> ICUSepsisState:
        normal = math.sqrt(PERSISTENT) * patient + math.sqrt(1 - PERSISTENT) * normals
        value = self.dynamics.centroid[z] + self.kappa * self.dynamics.spread * normal
        value = torch.clamp(value, -self._bound, self._bound)
        binary = (normal < self._threshold[z]).to(value) - 0.5
        return ICUSepsisState(z, patient, torch.where(BINARY.to(z.device), binary, value))

    def observe(self, state: ICUSepsisState, noise: ICUSepsisNoise | None) -> Tensor:
        """``(B, 44)`` normalised features."""
        return state.observation

    def action_mask(self, state: ICUSepsisState) -> Tensor | None:
        """Every action is allowed; where the clinicians never took one, the chain holds the mean of what they did."""
        return None

    def value_iteration(self) -> tuple[Tensor, Tensor]:
        """Probability of survival under the best policy of the hidden state, to 1e-10.

        Returns:
            Q ``(S, A)`` and V ``(S,)`` float64; 0 in the last three states.
        """
        return self.dynamics.optimum

    def policy_value(self, policy: Tensor) -> tuple[float, float]:
        """Survival and mean length (steps of 4 h) of a policy of the hidden state ``(S, A)``, by two linear systems.

        Raises:
            InputError: another shape, or rows of patients in care that are no distributions.
        """
        rows = policy[:LIVING].double()
        if policy.shape != (SINK + 1, ACTIONS) or bool(((rows.sum(1) - 1).abs() > 1e-4).any() | (rows < 0).any()):
            raise InputError(f"policy of shape {tuple(policy.shape)}: must be (716, 25) with rows 0..712 that sum to 1")
        chain = torch.einsum("sa,sat->st", rows, self.dynamics.transition[:LIVING])
        ends = torch.stack([chain[:, SURVIVAL], torch.ones_like(chain[:, 0])], dim=1)
        identity = torch.eye(LIVING, dtype=chain.dtype, device=chain.device)
        survival, length = self.dynamics.start[:LIVING] @ torch.linalg.solve(identity - chain[:, :LIVING], ends)
        return float(survival), float(length)


def _distribution(probabilities: Tensor) -> Tensor:
    """Distribution functions along the last axis, in float32."""
    cdf = probabilities.cumsum(-1).float()
    return torch.where(cdf > 1 - 1e-6, 1.0, cdf)  # no uniform may fall behind the last possible state


class HiddenPolicy:
    """A policy of the hidden state, sampled with a generator of its own.

    Args:
        table: ``(S, A)`` probabilities.
        seed: of the samples; every roll-out draws the same ones.
    """

    def __init__(self, table: Tensor, seed: int = 0) -> None:
        self.table, self.seed = table, seed
        self.reset(0)

    def reset(self, batch: int) -> None:
        """Start the samples anew."""
        self._generator = torch.Generator(self.table.device).manual_seed(self.seed)

    def __call__(self, observation: Tensor, state: Any = None) -> Tensor:
        """``(B,)`` sampled actions; any in the states without one."""
        weights = self.table[state.z]
        return torch.multinomial(weights + (state.z >= LIVING).unsqueeze(1), 1, generator=self._generator).squeeze(1)


def survival(
    world: ICUSepsis44, policy: Policy, patients: int, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """One unbiased estimate a patient of the survival under any policy, with most of the luck taken out.

    The outcome of a patient is V*(z_0) + sum_t [Q*(z_t, a_t) - V*(z_t)] plus the luck of the transitions, whose mean is
    zero (performance difference, Kakade and Langford 2002, lemma 6.1). V*(z_0) has its exact mean here, too.

    Args:
        world: on ``device``.
        policy: from ``(B, 44)`` normalised features and the state to ``(B,)`` actions.
        patients: B.
        seed: of the patients and their luck: equal for policies that are compared.
        device: of the roll-out.

    Returns:
        ``(B,)`` float64; their mean is the survival, their spread its standard error.
    """
    q, value = world.value_iteration()
    estimate = (world.dynamics.start @ value).repeat(patients)
    for state, action, _ in _care(world, policy, patients, seed, device):
        estimate += q[state.z, action] - value[state.z]  # both are 0 once the patient has left
    return estimate


def discounted_outcome(
    world: ICUSepsis44,
    policy: Policy,
    patients: int,
    seed: int,
    gamma: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """gamma^t times the outcome (+1 survived, -1 died) of simulated patients, t being the last step, from 0.

    The arguments are those of ``survival``.

    Returns:
        ``(B,)`` float64.
    """
    outcome = torch.zeros(patients, dtype=torch.float64, device=device)
    for t, (_, _, following) in enumerate(_care(world, policy, patients, seed, device)):
        ended = (following == SURVIVAL).double() - (following == DEATH).double()
        outcome += gamma**t * ended
    return outcome


def _care(
    world: ICUSepsis44, policy: Policy, patients: int, seed: int, device: torch.device | str
) -> Iterator[tuple[ICUSepsisState, Tensor, Tensor]]:
    """State, action and next hidden state of all patients, step by step, until the last one has left."""
    generator = torch.Generator(device).manual_seed(stream(seed, "patients"))
    state = world.reset(patients, generator)
    if hasattr(policy, "reset"):
        policy.reset(patients)
    while bool((state.z < LIVING).any()):
        noise = world.noise(patients, generator)
        with torch.no_grad():
            action = policy(state.observation, state)
        following = world.step(state, action, noise).state
        yield state, action, following.z
        state = following


def simulate_cohort(
    world: ICUSepsis44,
    patients: int,
    seed: int,
    *,
    split_seed: int | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    record_truth: bool = True,
) -> Cohort:
    """Patients as the clinicians treated them, with the exact probabilities of what they did.

    Args:
        world: on the CPU.
        patients: P.
        seed: of the patients, their luck and the clinicians.
        split_seed: of the split into train, validation and test; ``seed`` if None.
        fractions: shares of train, validation and test.
        record_truth: keep what only the simulator knows: ``score`` ``(P, T, 25)``, the survival Q*(z, a) if the best is
            done afterwards, and ``latent`` ``(P, T, 1)``, the hidden state.

    Returns:
        The cohort, without values in units: the chain's source has none.
    """
    clinician = HiddenPolicy(world.dynamics.clinician, stream(seed, "clinicians"))
    steps = list(_care(world, clinician, patients, seed, "cpu"))
    z = torch.stack([state.z for state, *_ in steps], dim=1)
    survived = torch.stack([end == SURVIVAL for *_, end in steps], dim=1).any(1)
    mask = z < LIVING
    split_seed = seed if split_seed is None else split_seed
    seen = mask.unsqueeze(-1)
    outcome = torch.where(survived, 1.0, -1.0)
    truth = {}
    if record_truth:
        score = torch.where(seen, world.value_iteration()[0].float()[z], 0.0)
        truth = {"score": score, "latent": torch.where(mask, z, 0).unsqueeze(-1).float()}
    return Cohort(
        state=torch.where(seen, torch.stack([state.observation for state, *_ in steps], dim=1), 0.0),
        action=torch.where(mask, torch.stack([action for _, action, _ in steps], dim=1), 0),
        mask=mask,
        outcome=outcome,
        split=split_patients(outcome, stream(seed, "split") if split_seed is None else split_seed, fractions),
        behaviour=torch.where(seen, world.dynamics.clinician.float()[z], 0.0),
        truth=truth,
        origin={
            "source": "icusepsis44",
            "synthetic": True,
            "patients": patients,
            "seed": seed,
            "split_seed": split_seed,
            "kappa": world.kappa,
        },
    )
