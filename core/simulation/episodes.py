"""Episodes of a batch of copies: clocks, time limits, automatic resets and faults, behind every view."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.errors import InputError
from core.simulation import tree
from core.simulation.simulator import Observation, Simulator, Step
from core.simulation.spaces import Scaling


@dataclass(frozen=True)
class VecStep:
    """One step of all copies, as tensors on the device; n rows, B copies (n = B with one agent).

    Attributes:
        obs: ``(n, ...)`` next observation; where an episode ended, the first one of the next episode.
        reward: ``(n,)``.
        terminated: ``(n,)`` bool; the world ended the episode.
        truncated: ``(n,)`` bool; the time limit or a fault ended it. Never true together with ``terminated``.
        final_obs: ``(n, ...)`` last observation of the episode where it ended, ``obs`` elsewhere.
        episode_return: ``(B,)`` sum of rewards of the episode so far, this step included (mean over agents).
        episode_length: ``(B,)`` steps of the episode so far, this one included.
        nonfinite: ``(B,)`` bool; the copy was ended because its next state or reward was not finite.
        info: the world's own tensors, and ``action_mask`` of the state reached where the world masks.
        ended: whether any copy ended, known without waiting for the device.
        timed_out: whether any copy was truncated, likewise.
    """

    obs: Observation
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: Observation
    episode_return: Tensor
    episode_length: Tensor
    nonfinite: Tensor
    info: dict[str, Tensor]
    ended: bool
    timed_out: bool


class Episodes:
    """``num_envs`` copies of a simulator that start again in the step in which they end.

    One draw of noise serves ``observe`` and then ``step``. The time limit is counted here, never by the world. A copy
    whose next state or reward is not finite ends as truncated: reward 0, ``final_obs`` its last finite observation.

    With ``assume_horizon`` nothing waits for the device: all copies end together at the horizon. A copy that ends
    before (a fault, or a world that terminates after all) starts again from the initial state it had.

    Args:
        simulator: the world.
        num_envs: B, the number of copies.
        horizon: time limit in steps; None never truncates.
        scaled: whether actions and observations are the learner's [-1, 1] float32 or in the domain's units.
        observation_range: what the learner sees instead of [-1, 1].
        device: where the generator, hence everything, lives.
        seed: of the generator; None draws one.
        assume_horizon: no world of this kind terminates before ``horizon``.

    Raises:
        InputError: an impossible number, an unusable space, or a world that changes device, type or shape in a step.
    """

    def __init__(
        self,
        simulator: Simulator,
        num_envs: int,
        *,
        horizon: int | None = None,
        scaled: bool = True,
        observation_range: tuple[float, float] = (-1.0, 1.0),
        device: torch.device | str = "cpu",
        seed: int | None = None,
        assume_horizon: bool = False,
    ) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs: {num_envs}; allowed: at least 1")
        if horizon is not None and horizon < 1:
            raise InputError(f"horizon: {horizon}; allowed: at least 1, or None for no time limit")
        if assume_horizon and horizon is None:
            raise InputError("assume_horizon: needs a horizon")
        self.simulator = simulator
        self.num_envs = num_envs
        self.horizon = horizon
        self.device = torch.device(device)
        self.observation = Scaling(
            simulator.observation_space, scaled=scaled, view_range=observation_range, device=device
        )
        self.action = Scaling(simulator.action_space, scaled=scaled, device=device, name="action_space")
        agents = () if simulator.agents == 1 else (simulator.agents,)
        self._action_shape = torch.Size((num_envs, *agents, *(simulator.action_space.shape or ())))
        self._lockstep = assume_horizon
        self._age = 0
        self._nonfinite = torch.zeros((), dtype=torch.int64, device=self.device)
        self._state: Any = None
        self._reward_dtype, self.masked = _probe(simulator, self.action, self.device)
        self.generator = torch.Generator(self.device)
        self.seed(seed)

    def seed(self, seed: int | None) -> int:
        """Reseed the generator (None draws a seed) and return the seed."""
        if seed is None:
            return self.generator.seed()
        self.generator.manual_seed(seed)
        return seed

    @property
    def n_nonfinite(self) -> int:
        """How many episodes ended because a number was not finite."""
        return int(self._nonfinite)

    @torch.no_grad()
    def reset(self) -> Observation:
        """Start every copy afresh and return the first observations."""
        self._state = self._initial = self.simulator.reset(self.num_envs, self.generator)
        self._noise = self.simulator.noise(self.num_envs, self.generator)
        self._clock = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._return = torch.zeros(self.num_envs, dtype=self._reward_dtype, device=self.device)
        self._age = 0
        self._obs = self._observe()
        return self._obs

    def step(self, action: Tensor) -> VecStep:
        """Advance every copy; the ones that end begin their next episode."""
        step = self.advance(action)
        return self._restart(step) if step.ended or self._lockstep else step

    @torch.no_grad()
    def advance(self, action: Tensor) -> VecStep:
        """Advance every copy and leave the ones that ended where they are."""
        if self._state is None:
            raise InputError("step: called before reset")
        if action.shape != self._action_shape:
            raise InputError(f"action of shape {tuple(action.shape)}: must be {tuple(self._action_shape)}")
        domain_action = self.action.to_domain(action.to(self.device))
        step = self.simulator.step(self._state, domain_action, self._noise)
        finite = tree.finite(step.state, step.reward)
        nonfinite = ~finite
        terminated = step.terminated & finite
        self._clock = self._clock + 1
        self._age += 1
        truncated = self._truncated(nonfinite, terminated)
        fault, ended, timed_out = self._flags(nonfinite, terminated, truncated)

        reward, last_obs = step.reward, self._obs
        self._state = step.state
        self._noise = self.simulator.noise(self.num_envs, self.generator)
        self._obs = self._observe()
        if fault:
            reward = torch.where(tree.expand_mask(finite, reward), reward, 0.0)
            self._obs = tree.where(finite, self._obs, last_obs)
            self._nonfinite = self._nonfinite + nonfinite.sum()
        self._return = self._return + (reward if reward.dim() == 1 else reward.mean(1))
        info = step.info | self.mask_info()
        return VecStep(
            self._obs,
            reward,
            terminated,
            truncated,
            self._obs,
            self._return,
            self._clock,
            nonfinite,
            info,
            ended,
            timed_out,
        )

    def mask_info(self) -> dict[str, Tensor]:
        """``action_mask`` where the world masks, as int8, which gymnasium's ``Discrete.sample`` asks for."""
        return {"action_mask": self.action_mask().to(torch.int8)} if self.masked else {}

    def action_mask(self) -> Tensor:
        """Bool mask of the allowed actions in the present state."""
        mask = self.simulator.action_mask(self._state)
        assert mask is not None, "the world does not mask"
        return mask

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the future depends on, by name: state, pending noise, clocks, statistics, generator.

        Complex numbers are pairs of real ones here.
        """
        return {name: tree.as_real(tensor) for name, tensor in self._future().items()}

    def _future(self) -> dict[str, Tensor]:
        tensors = {
            **dict(tree.named_tensors(self._state, "state")),
            **dict(tree.named_tensors(self._noise, "noise")),
            "clock": self._clock,
            "return": self._return,
            "nonfinite": self._nonfinite,
            "age": torch.tensor(self._age),
            "generator": self.generator.get_state(),
        }
        if self._lockstep:
            tensors |= tree.named_tensors(self._initial, "initial")
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on exactly where ``state_tensors`` was taken.

        Raises:
            InputError: a tensor of this world's state is absent or of another shape.
        """
        self.reset()
        template = self._future()
        for name, like in template.items():
            shape = tree.as_real(like).shape
            if name not in tensors or tensors[name].shape != shape:
                found = tuple(tensors[name].shape) if name in tensors else "absent"
                raise InputError(f"environment state {name}: {found}; this world needs {tuple(shape)}")
        # Copied into tensors of the world's own memory layout, because vectorised code may round by layout.
        tensors = {name: tree.like(tensors[name], like) for name, like in template.items()}
        if self._lockstep:
            self._initial = tree.with_tensors(self._initial, tensors, "initial")
        self._state = tree.with_tensors(self._state, tensors, "state")
        self._noise = tree.with_tensors(self._noise, tensors, "noise")
        self._clock, self._return, self._nonfinite = tensors["clock"], tensors["return"], tensors["nonfinite"]
        self._age = int(tensors["age"])
        self.generator.set_state(tensors["generator"])
        self._obs = self._observe()

    def _observe(self) -> Observation:
        return self.observation.to_view(self.simulator.observe(self._state, self._noise))

    def _truncated(self, nonfinite: Tensor, terminated: Tensor) -> Tensor:
        if self.horizon is None:
            return nonfinite
        if self._lockstep:
            return ~terminated if self._age == self.horizon else nonfinite
        return nonfinite | (self._clock >= self.horizon) & ~terminated

    def _flags(self, nonfinite: Tensor, terminated: Tensor, truncated: Tensor) -> tuple[bool, bool, bool]:
        """Whether any copy is faulty, any ended and any was truncated; the step's only wait for the device."""
        if self._lockstep:
            common_end = self._age == self.horizon
            return True, common_end, common_end
        fault, dead, timed_out = torch.stack((nonfinite, terminated, truncated)).any(1).tolist()
        return fault, dead or timed_out, timed_out

    @torch.no_grad()
    def _restart(self, step: VecStep) -> VecStep:
        done = step.terminated | step.truncated
        if step.ended:
            self._initial = self.simulator.reset(self.num_envs, self.generator)
            self._age = 0
        self._state = tree.where(done, self._initial, self._state)
        self._clock = torch.where(done, 0, self._clock)
        self._return = torch.where(done, 0.0, self._return)
        self._obs = self._observe()
        return replace(step, obs=self._obs)


def _probe(simulator: Simulator, action: Scaling, device: torch.device) -> tuple[torch.dtype, bool]:
    """Take one step of one copy: the reward's type and whether the world masks; refuse a world that breaks its word."""
    generator = torch.Generator(device)
    state, noise = simulator.reset(1, generator), simulator.noise(1, generator)
    mask = simulator.action_mask(state)
    agents = (1,) if simulator.agents == 1 else (1, simulator.agents)
    shape = simulator.action_space.shape or ()
    chosen = action.to_domain(torch.zeros(agents + shape, device=device))
    if mask is not None and simulator.agents == 1:
        # A copy, because sampling advances the random numbers of the space.
        allowed = copy.deepcopy(simulator.action_space).sample(mask=mask[0].to(torch.int8).cpu().numpy())
        chosen = torch.as_tensor(allowed, device=device).unsqueeze(0)
    step: Step = simulator.step(state, chosen, noise)
    after = dict(tree.named_tensors(step.state))
    for name, before in tree.named_tensors(state):
        if (after[name].dtype, after[name].device, after[name].shape) != (before.dtype, before.device, before.shape):
            raise InputError(
                f"state.{name}: step returned {after[name].dtype} {tuple(after[name].shape)} on {after[name].device} "
                f"for {before.dtype} {tuple(before.shape)} on {before.device}; allowed: the same"
            )
    if step.reward.shape not in ((1,), agents) or step.reward.device.type != device.type:
        raise InputError(
            f"reward: {tuple(step.reward.shape)} on {step.reward.device} for one copy; "
            f"allowed: (1,) or {agents} on {device.type}"
        )
    return step.reward.dtype, mask is not None
