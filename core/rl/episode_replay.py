"""Past episodes as tensors on the device, with importance weights and Retrace values kept for every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.errors import InputError
from core.simulation import tree

INNER, TERMINATED, TRUNCATED = 0, 1, 2
"""What the step after a sample is: the next one of its episode, nothing, or cut off."""

_FINAL = ("final_observations", "final_values")  # have a meaning only where an episode was truncated
_AT_ONCE = 2**22  # steps retraced together: some tens of megabytes


class EpisodeReplayBuffer:
    """A ring of the last ``slots`` steps of all rows; a row is a copy of a world, or one of its agents.

    Every vector step fills one slot. A step becomes a sample when its episode is over, and stops to be one when its
    slot is filled again: an episode loses its oldest steps first, and no segment ever reaches into another episode.

    With rho = pi(a|s) / mu(a|s) as last seen, r~ = (r - ``reward_mean``) / ``reward_std`` and rho_bar = min(1, rho),

        Vtbc_t = V_t + rho_bar_t (Qret_t - V_t),    Qret_t = r~_t + gamma Vtbc_{t+1},

    where Vtbc_{t+1} is V(s_T) behind a truncated episode and the value of nothing but rewards r = 0 behind a
    terminated one: 0, less the mean that r~ lacks ever after (Munos et al. 2016, eq. 4 with lambda = 1, and Novati and
    Koumoutsakos 2019, section 3). A new episode has rho = 1, so that it begins with its discounted sums of rewards.

    Args:
        slots: steps kept of each row.
        rows: number of rows.
        observation_shape: of one row.
        action_dim: numbers of an action.
        gamma: discount factor.
        device: of the tensors.

    Attributes:
        data: ``(slots, rows, ...)`` tensors ``observations, actions, rewards, means, stds`` (of the behaviour),
            ``values, ratios, returns`` (V, rho, Vtbc), ``far`` (whether rho left the trusted interval), ``ends``,
            ``places`` (in the episode, from 0), ``final_observations`` and ``final_values`` (s_T and V(s_T), where
            truncated).
        steps: vector steps stored so far.
        longest: steps of the longest episode that ended.
        far_count: ``()``, number of samples that are far.
        reward_mean: ``()``, subtracted from rewards.
        reward_std: ``()``, by which they are divided.

    Raises:
        InputError: no slots, or a buffer that the device has no memory for.
    """

    def __init__(
        self,
        slots: int,
        rows: int,
        observation_shape: tuple[int, ...],
        action_dim: int,
        *,
        gamma: float,
        device: torch.device | str = "cpu",
    ) -> None:
        if slots < 1:
            raise InputError(f"slots: {slots}; allowed: at least 1")
        self.slots, self.rows, self.gamma, self.device = slots, rows, gamma, torch.device(device)
        vector, scalar = (action_dim,), ()
        kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            **dict.fromkeys(("observations", "final_observations"), (observation_shape, torch.float32)),
            **dict.fromkeys(("actions", "means", "stds"), (vector, torch.float32)),
            **dict.fromkeys(("rewards", "values", "ratios", "returns", "final_values"), (scalar, torch.float32)),
            "far": (scalar, torch.bool),
            "ends": (scalar, torch.int8),
            "places": (scalar, torch.int32),
        }
        try:
            by_row = {
                name: torch.zeros((rows, slots, *shape), dtype=dtype, device=self.device)
                for name, (shape, dtype) in kinds.items()
            }
        except torch.OutOfMemoryError as error:
            slot_bytes = rows * sum(math.prod(shape) * dtype.itemsize for shape, dtype in kinds.values())
            free, _ = torch.cuda.mem_get_info(self.device)
            raise InputError(
                f"slots: {slots} of {rows} rows need {slots * slot_bytes} bytes of {self.device}; "
                f"allowed: at most {free // slot_bytes} slots, for which there is room"
            ) from error
        # An episode lies in one piece of memory, which is what retracing it takes time for.
        self._flat = {name: tensor.flatten(0, 1) for name, tensor in by_row.items()}
        self.data = {name: tensor.transpose(0, 1) for name, tensor in by_row.items()}
        self.steps = self.longest = 0
        self._began = torch.zeros(rows, dtype=torch.int64, device=self.device)  # step of the running episode's start
        self.far_count = torch.zeros((), dtype=torch.int64, device=self.device)
        self.reward_mean = torch.zeros((), device=self.device)
        self.reward_std = torch.ones((), device=self.device)

    @property
    def filled(self) -> int:
        """Slots in use."""
        return min(self.steps, self.slots)

    @property
    def samples(self) -> Tensor:
        """``(rows,)`` number of samples of each row."""
        return (self._began - self._oldest).clamp(min=0)

    @property
    def _oldest(self) -> int:
        return self.steps - self.filled

    def add(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, means: Tensor, stds: Tensor, values: Tensor
    ) -> None:
        """Store one step of all rows, taken by the policy N(``means``, ``stds``^2); ``values`` are its V."""
        slot = self.steps % self.slots
        self.far_count -= self.data["far"][slot].sum()
        step = {"observations": observations, "actions": actions, "rewards": rewards, "means": means, "stds": stds}
        for name, item in (step | {"values": values, "places": self.steps - self._began}).items():
            self.data[name][slot] = item
        self.data["ratios"][slot] = 1.0
        self.data["far"][slot] = False
        self.data["ends"][slot] = INNER
        self.steps += 1

    @torch.no_grad()
    def end(self, terminated: Tensor, truncated: Tensor, final_observations: Tensor, final_values: Tensor) -> None:
        """Say which episodes ended with the step stored last; their steps become samples.

        Args:
            terminated: ``(rows,)`` bool.
            truncated: ``(rows,)`` bool, nowhere true together with ``terminated``.
            final_observations: ``(rows, ...)`` what followed; read where truncated.
            final_values: ``(rows,)`` its value.
        """
        slot = (self.steps - 1) % self.slots
        ended = terminated | truncated
        kind = (TERMINATED * terminated + TRUNCATED * truncated).to(torch.int8)
        final = {"ends": kind, "final_observations": final_observations, "final_values": final_values}
        for name, item in final.items():
            held = self.data[name][slot]
            held.copy_(tree.where(ended, item, held))
        self._began = torch.where(ended, self.steps, self._began)
        self.longest = max(self.longest, int(((self.data["places"][slot] + 1) * ended).max()))
        self.retrace(ended.nonzero().flatten() * self.slots + slot)

    @torch.no_grad()
    def cut(self, observations: Tensor, values: Tensor) -> None:
        """Truncate the episodes that are running, which arrived at ``observations``."""
        running = self._began < self.steps
        self.end(torch.zeros_like(running), running, observations, values)

    def sample(self, batch_size: int) -> Tensor:
        """Positions ``(batch_size,)`` of samples, drawn uniformly and independently; see ``take``."""
        samples = self.samples
        behind = samples.cumsum(0)
        # Drawn on the device, whose numbers of samples the host does not know.
        uniform = torch.rand(batch_size, dtype=torch.float64, device=self.device)
        drawn = torch.minimum((uniform * behind[-1]).long(), behind[-1] - 1)
        row = torch.searchsorted(behind, drawn, right=True)
        step = self._oldest + drawn - (behind - samples)[row]
        return row * self.slots + step % self.slots

    def take(self, name: str, positions: Tensor) -> Tensor:
        """``data[name]`` at positions, which count row by row and, within a row, slot by slot."""
        return self._flat[name][positions]

    @torch.no_grad()
    def refresh(self, positions: Tensor, values: Tensor, ratios: Tensor, far: Tensor, final_values: Tensor) -> None:
        """Store what the present policy makes of samples, and retrace their episodes from the last of them backwards.

        Args:
            positions: ``(n,)``; one may stand there twice.
            values: ``(n,)`` V.
            ratios: ``(n,)`` rho.
            far: ``(n,)`` bool.
            final_values: ``(n,)`` V(s_T), read where the sample ends a truncated episode.
        """
        same = positions.unsqueeze(1) == positions
        repeated = same.tril(-1).any(1)
        self.far_count += ((far.int() - self.take("far", positions).int()) * ~repeated).sum()
        for name, item in {"values": values, "ratios": ratios, "far": far, "final_values": final_values}.items():
            self._flat[name][positions] = item
        self.retrace(self._last_of_episodes(positions))

    @torch.no_grad()
    def retrace(self, positions: Tensor) -> None:
        """Recompute Vtbc at positions of different episodes (or equal ones) and at all that precedes them there."""
        if not len(positions):
            return
        slot = positions % self.slots
        age = (slot - self._oldest) % self.slots
        back = torch.arange(min(self.longest, self.slots), device=self.device)
        inside = back <= torch.minimum(self.take("places", positions), age).unsqueeze(1)
        back = torch.where(inside, back, 0)
        earlier = positions.unsqueeze(1) - back + self.slots * (back > slot.unsqueeze(1))
        # Vtbc = offset + factor * (Vtbc of the following step) is composed over 1, 2, 4, ... steps.
        ratio, value = self.take("ratios", earlier).clamp(max=1.0), self.take("values", earlier)
        offset = value + ratio * (self._scaled(self.take("rewards", earlier)) - value)
        factor = self.gamma * ratio
        offset[:, 0] += factor[:, 0] * self._following(positions)
        reach = 1
        while reach < back.shape[1]:
            offset[:, reach:] += factor[:, reach:] * offset[:, :-reach].clone()
            factor[:, reach:] *= factor[:, :-reach].clone()
            reach *= 2
        # Outside of the episode the first value is written to its place again, which changes nothing.
        self._flat["returns"][earlier] = torch.where(inside, offset, offset[:, :1])

    def targets(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Vtbc and Qret at positions; ``(n,)`` each."""
        quality = self._scaled(self.take("rewards", positions)) + self.gamma * self._following(positions)
        return self.take("returns", positions), quality

    @torch.no_grad()
    def rescale(self) -> None:
        """Take the mean and the deviation of the stored rewards as the new scale.

        Without a discount there is no mean to subtract: what it is worth ever after would be infinite.
        """
        std, mean = torch.std_mean(self.data["rewards"][: self.filled], correction=0)
        self.reward_mean = torch.where(torch.tensor(self.gamma < 1, device=self.device), mean, 0.0)
        self.reward_std = torch.where(std > 0, std, 1.0)

    def retrace_all(self) -> None:
        """Recompute Vtbc of every sample."""
        last = (self._flat["ends"] != INNER).nonzero().flatten()
        for some in last.split(max(1, _AT_ONCE // max(1, self.longest))):
            self.retrace(some)

    def tensors(self) -> dict[str, Tensor]:
        """Everything in it, by name."""
        truncated = self._flat["ends"] == TRUNCATED
        held = {name: tensor[: self.filled] for name, tensor in self.data.items() if name not in _FINAL}
        return {
            **held,
            **{name: self._flat[name][truncated] for name in _FINAL},
            "began": self._began,
            "far_count": self.far_count,
            "reward_mean": self.reward_mean,
            "reward_std": self.reward_std,
            "counts": torch.tensor([self.steps, self.longest]),
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``tensors``.

        Raises:
            InputError: a tensor is absent, or of another shape than this buffer needs.
        """
        if (counts := tensors.get("counts")) is None:
            raise InputError("replay memory: absent")
        self.steps, self.longest = counts.tolist()
        for name, tensor in self.data.items():
            if name not in _FINAL:
                held = tensor[: self.filled]
                if name not in tensors or tensors[name].shape != held.shape:
                    found = tuple(tensors[name].shape) if name in tensors else "absent"
                    raise InputError(f"replay memory {name}: {found}; this model needs {tuple(held.shape)}")
                held.copy_(tensors[name])
        truncated = self._flat["ends"] == TRUNCATED
        for name in _FINAL:
            self._flat[name][truncated] = tensors[name].to(self.device)
        self._began, self.far_count = tensors["began"].to(self.device), tensors["far_count"].to(self.device)
        self.reward_mean, self.reward_std = (tensors[f"reward_{x}"].to(self.device) for x in ("mean", "std"))

    def _scaled(self, rewards: Tensor) -> Tensor:
        return (rewards - self.reward_mean) / self.reward_std

    def _following(self, positions: Tensor) -> Tensor:
        """Vtbc_{t+1}, or what stands for it behind the end of an episode."""
        ends = self.take("ends", positions)
        wraps = positions % self.slots == self.slots - 1
        following = self.take("returns", positions + 1 - self.slots * wraps)
        nothing = -self.reward_mean / self.reward_std / (1 - self.gamma) if self.gamma < 1 else 0.0
        following = torch.where(ends == TRUNCATED, self.take("final_values", positions), following)
        return torch.where(ends == TERMINATED, nothing, following)

    def _last_of_episodes(self, positions: Tensor) -> Tensor:
        """Each position moved to the last one of the same episode among them."""
        row, slot = positions // self.slots, positions % self.slots
        age = (slot - self._oldest) % self.slots
        episode = (age - self.take("places", positions)) * self.rows + row  # its first step, also if that is gone
        last = torch.where(episode.unsqueeze(1) == episode, age, -1).amax(1)
        return row * self.slots + (last + self._oldest) % self.slots
