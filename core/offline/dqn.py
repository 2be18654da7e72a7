"""Deep Q-learning from a fixed dataset of logged decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor

from core.checkpoint import Checkpoint
from core.errors import InputError
from core.offline.dataset import OfflineDataset
from core.rl.checkpoint import load_parameters, parameters
from core.rl.dqn import DQN
from core.rl.q_network import DQNPolicy
from core.rl.replay import Priorities, ReplayBatch
from core.seeds import stream

_CHUNK = 100
"""Updates between two reports of progress, looks at the numbers and possible saves."""
_ROWS_AT_ONCE = 2**16


class ActionValues:
    """What follows from the values of all actions."""

    def q_values(self, observations: Tensor) -> Tensor:
        """``(N, A)`` values for ``(N, do)``."""
        raise NotImplementedError

    def predict_probabilities(self, observations: Tensor, temperature: float = 1.0) -> Tensor:
        """``(N, A)`` softmax of Q / ``temperature``.

        Raises:
            InputError: a temperature that is not positive.
        """
        if not temperature > 0:
            raise InputError(f"temperature: {temperature}; allowed: greater than 0")
        return torch.softmax(self.q_values(observations) / temperature, 1)

    def greedy(self, observations: Tensor) -> Tensor:
        """``(N,)`` int64, the action of the largest value."""
        return self.q_values(observations).argmax(1)


class MeanQ(ActionValues):
    """The mean of the values of several models, whose errors partly cancel.

    Args:
        models: with the same observations and actions.

    Raises:
        InputError: no model.
    """

    def __init__(self, models: Sequence[ActionValues]) -> None:
        if not models:
            raise InputError("models: none; allowed: at least one")
        self.models = tuple(models)

    def q_values(self, observations: Tensor) -> Tensor:
        """``(N, A)`` mean values for ``(N, do)``."""
        return torch.stack([model.q_values(observations) for model in self.models]).mean(0)


class DatasetReplay:
    """The transitions of a dataset as a memory that is never written to, prepared once for all n-step returns.

    Args:
        dataset: of a Discrete action space.
        n_steps: steps of a transition, fewer at the end of an episode.
        gamma: discount factor.
        generator: of the draws, on the dataset's device.
        priorities: draws by errors, if given.
    """

    def __init__(
        self,
        dataset: OfflineDataset,
        n_steps: int,
        gamma: float,
        generator: torch.Generator,
        priorities: Priorities | None = None,
    ) -> None:
        steps = dataset.n_step(n_steps, gamma)
        self._observations = steps.observations.float(), steps.next_observations.float()
        self._actions = steps.actions.long().unsqueeze(1)
        numbers = (steps.terminated.float(), steps.rewards.float(), steps.discounts.float())
        self._numbers = torch.stack(numbers, 1)
        self.generator, self.priorities = generator, priorities
        if priorities is not None:
            priorities.insert(torch.arange(len(self), device=generator.device))

    def __len__(self) -> int:
        return len(self._actions)

    def sample(self, batch_size: int) -> ReplayBatch:
        """``batch_size`` transitions, drawn with replacement."""
        weights = positions = None
        if self.priorities is None:
            device = self.generator.device
            rows = torch.randint(len(self), (batch_size,), generator=self.generator, device=device)
        else:
            rows, drawn = self.priorities.draw(batch_size, self.generator)
            weights, positions = drawn.unsqueeze(1), rows
        observations, next_observations = (x.index_select(0, rows) for x in self._observations)
        dones, rewards, discounts = self._numbers.index_select(0, rows).split(1, 1)
        actions = self._actions.index_select(0, rows)
        return ReplayBatch(
            observations, actions, next_observations, dones, rewards, discounts, None, weights, positions
        )


class OfflineDQN(ActionValues, DQN):
    """``core.rl.DQN`` from logged transitions: dueling, double, n-step and prioritised as its arguments say.

    An update descends mean(w (Q(s, a) - y)^2) + ``bound_weight`` * sum_batch max(|Q(s, a)| - ``q_bound``, 0) with
    y = R_n + gamma^m clip(Q_target(s', argmax_a Q(s', a)), -``q_bound``, ``q_bound``); before it the target network
    moves by ``tau`` (Sukovic and Radanovic, ICLR 2024, arXiv 2402.15826, and the code that they published).

    Args:
        dataset: what was logged, of a Discrete action space; None makes a model that can be loaded and asked, not
            fitted.
        policy: see ``DQN``.
        learning_rate: of Adam; a number or a schedule of SB3 over a call of ``fit``.
        adam_eps: epsilon of Adam.
        batch_size: transitions of an update.
        gamma: discount factor.
        tau: see above.
        n_steps: steps of a transition.
        double: see ``DQN``; without it a' is the target network's own choice.
        prioritized: see ``DQN``.
        priority_alpha: see ``DQN``.
        priority_beta: see ``DQN``.
        priority_eps: see ``DQN``.
        q_bound: see above; None has no bound.
        bound_weight: see above.
        max_grad_norm: the gradient is cut to this length.
        policy_kwargs: of ``DQNPolicy``: ``net_arch``, ``activation_fn``, ``dueling``, ``head_arch``, ``batch_norm``,
            ``xavier``, ...
        seed: of the network and of the draws.
        device: where to compute; the dataset is copied there.

    Raises:
        InputError: a number out of its range, or a dataset of continuous actions.
    """

    saved_arguments: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "adam_eps", "batch_size", "gamma", "tau", "n_steps", "double", "prioritized"),
        *("priority_alpha", "priority_beta", "priority_eps", "q_bound", "bound_weight", "max_grad_norm"),
        *("policy_kwargs", "seed"),
    )
    resumed_attributes: ClassVar[tuple[str, ...]] = (*DQN.resumed_attributes, "clipped_counts")

    def __init__(
        self,
        dataset: OfflineDataset | None,
        *,
        policy: str | type[DQNPolicy] = "MlpPolicy",
        learning_rate: Any = 1e-4,
        adam_eps: float = 1.5e-4,
        batch_size: int = 256,
        gamma: float = 0.99,
        tau: float = 1e-3,
        n_steps: int = 6,
        double: bool = True,
        prioritized: bool = False,
        priority_alpha: float = 0.6,
        priority_beta: Any = 0.9,
        priority_eps: float = 1e-6,
        q_bound: float | None = 20.0,
        bound_weight: float = 5.0,
        max_grad_norm: float = math.inf,
        policy_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        given = {"batch_size": batch_size, "gamma": gamma, "tau": tau, "q_bound": q_bound, "bound_weight": bound_weight}
        ranges = {"batch_size": (1, math.inf), "bound_weight": (0, math.inf), "q_bound": (0, math.inf)}
        for name, value in given.items():
            low, high = ranges.get(name, (0, 1))
            if value is not None and not low <= value <= high:
                allowed = f"{low} to {high}" if high == 1 else f"at least {low}"
                raise InputError(f"{name}: {value}; allowed: {allowed}")
        self.adam_eps, self.q_bound, self.bound_weight = adam_eps, q_bound, bound_weight
        policy_kwargs = dict(policy_kwargs or {})
        if "optimizer_class" not in policy_kwargs:
            adam = {"eps": adam_eps, "fused": True}
            policy_kwargs["optimizer_kwargs"] = adam | policy_kwargs.get("optimizer_kwargs", {})
        super().__init__(
            policy,
            None,
            learning_rate=learning_rate,
            buffer_size=1,
            batch_size=batch_size,
            gamma=gamma,
            tau=tau,
            n_steps=n_steps,
            double=double,
            prioritized=prioritized,
            priority_alpha=priority_alpha,
            priority_beta=priority_beta,
            priority_eps=priority_eps,
            target_update_interval=0,
            max_grad_norm=max_grad_norm,
            policy_kwargs=policy_kwargs,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.n_envs = 1
        self.dataset = dataset
        if dataset is not None:
            dataset.choices  # noqa: B018 (refuses continuous actions)
            self.observation_space, self.action_space = dataset.observation_space, dataset.action_space
            self._setup_model()

    @classmethod
    def unbuilt(cls, policy: str, env: Any, device: torch.device | str, arguments: dict[str, Any]) -> Self:
        """A model of the saved constructor ``arguments`` without its networks yet, for ``load``.

        Raises:
            InputError: an environment, of which there is no use here.
        """
        if env is not None:
            raise InputError("env: given; allowed: None (the model learns from a dataset)")
        return cls(None, policy=policy, device=device, **arguments)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._clipped = torch.zeros(2, dtype=torch.float64, device=self.device)
        if self.dataset is not None:
            generator = torch.Generator(self.device).manual_seed(stream(self.seed or 0, "batches"))
            priorities = None
            if self.prioritized:
                priorities = Priorities(
                    len(self.dataset),
                    alpha=self.priority_alpha,
                    beta=self._beta_schedule(1.0),
                    eps=self.priority_eps,
                    device=self.device,
                )
            memory: Any = DatasetReplay(self.dataset.to(self.device), self.n_steps, self.gamma, generator, priorities)
            self.replay_buffer = memory

    def next_values(self, batch: ReplayBatch) -> Tensor:
        """``(N, 1)`` as in ``DQN``, within the bound."""
        values = super().next_values(batch)
        if self.q_bound is None:
            return values
        bounded = values.clamp(-self.q_bound, self.q_bound)
        goes_on = 1 - batch.dones
        self._clipped += torch.stack(((goes_on * (values != bounded)).sum(), goes_on.sum()))
        return bounded

    def critic_loss(self, q: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """Mean squared error, weighted; all ``(N, 1)``."""
        squared = (q - target).square()
        return (squared if weights is None else weights * squared).mean()

    def critic_penalty(self, q_values: Tensor, batch: ReplayBatch) -> Tensor | float:
        """What the values of the logged actions exceed the bound by, summed over the batch."""
        if self.q_bound is None or not self.bound_weight:
            return 0.0
        q = q_values.gather(1, batch.actions)
        return self.bound_weight * (q.abs() - self.q_bound).relu().sum()

    @property
    def clipped_counts(self) -> list[float]:
        """How many bootstrap values the bound has cut so far, and how many there were."""
        counts: list[float] = self._clipped.tolist()
        return counts

    @clipped_counts.setter
    def clipped_counts(self, counts: list[float]) -> None:
        self._clipped.copy_(torch.tensor(counts))

    @property
    def clipped_share(self) -> float:
        """Share of the bootstrap values so far that the bound has cut (0 if there were none)."""
        clipped, all_of_them = self.clipped_counts
        return clipped / max(all_of_them, 1.0)

    def fit(
        self,
        gradient_steps: int,
        *,
        checkpoint: Path | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> Self:
        """Take so many gradient steps.

        Args:
            gradient_steps: of this call; a second call goes on where the first ended.
            checkpoint: file from which an interrupted call goes on, bit for bit on a CPU, and which it keeps up to
                date.
            progress: told the share done and a message.

        Raises:
            InputError: no dataset, or a checkpoint of another model.
            TrainingDiverged: see ``DQN.train``.
        """
        if self.dataset is None:
            raise InputError("dataset: None; allowed: a dataset to learn from, given to the constructor")
        if not hasattr(self, "_logger"):
            self.set_logger(Logger(folder=None, output_formats=[]))
        kept = Checkpoint(checkpoint)
        done = 0
        if (saved := kept.load()) is not None:
            done = self._restore(saved, str(checkpoint))
        while done < gradient_steps:
            self._current_progress_remaining = 1 - done / gradient_steps
            steps = min(_CHUNK, gradient_steps - done)
            self.train(steps, self.batch_size)
            self._check()
            done += steps
            if kept.due or (checkpoint is not None and done == gradient_steps):
                kept.save(self._state(done))
            if progress is not None:
                progress(done / gradient_steps, f"update {done} of {gradient_steps}")
        return self

    def learn(self, *_: Any, **__: Any) -> Self:
        """Refused: there is nothing to act in.

        Raises:
            InputError: always.
        """
        raise InputError("learn: this model learns from its dataset; allowed: fit")

    def q_values(self, observations: Tensor) -> Tensor:
        """``(N, A)`` values for ``(N, do)``, on the model's device, without gradient."""
        self.policy.set_training_mode(False)
        with torch.no_grad():
            parts = observations.to(self.device, torch.float32).split(_ROWS_AT_ONCE)
            return torch.cat([self.q_net(part) for part in parts])

    def _state(self, done: int) -> dict[str, Tensor]:
        memory: Any = self.replay_buffer
        tensors = {
            **parameters(self),
            "done": torch.tensor([done, self._n_updates]),
            "clipped": self._clipped,
            "generator": memory.generator.get_state(),
        }
        return tensors | ({} if memory.priorities is None else memory.priorities.tensors())

    def _restore(self, tensors: dict[str, Tensor], source: str) -> int:
        memory: Any = self.replay_buffer
        expected = self._state(0).keys() - {name for name in tensors if name.startswith("optimizer.")}
        if absent := expected - tensors.keys():
            raise InputError(f"{source}: {min(absent)} is absent; allowed: a checkpoint of this model")
        if memory.priorities is not None and len(tensors["priorities"]) != len(memory):
            raise InputError(f"{source}: of {len(tensors['priorities'])} transitions; the dataset has {len(memory)}")
        load_parameters(self, tensors, source)
        memory.generator.set_state(tensors["generator"].cpu())
        if memory.priorities is not None:
            memory.priorities.load_tensors(tensors)
        self._clipped.copy_(tensors["clipped"])
        self._good = None
        done, self._n_updates = tensors["done"].tolist()
        return int(done)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "dataset", "_clipped"]
