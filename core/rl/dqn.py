"""Deep Q-learning on the device of a batched simulator: double, dueling, prioritised, n-step, masked."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFreq
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional

from core.errors import InputError
from core.rl.action_set import ActionSetPolicy
from core.rl.algorithm import DeviceAlgorithm, TrainingDiverged
from core.rl.masks import is_masked
from core.rl.q_network import CnnDQNPolicy, DQNPolicy, MultiInputDQNPolicy
from core.rl.replay import PrioritizedReplayBuffer, ReplayBatch, TensorReplayBuffer
from core.rl.rollout import EndedEpisodes, shown
from core.simulation import tree
from core.simulation.sb3_vec_env import SB3VecEnv

CHECK_EVERY = 100
"""Updates between two looks at the numbers."""


class DQN(DeviceAlgorithm, stable_baselines3.DQN):
    """Stable-Baselines3's DQN (Mnih et al. 2015) with roll-outs and memory on the device, and its usual extensions.

    Without the extensions the results are SB3's, but for one thing: on an ``SB3VecEnv`` each row tosses a coin of its
    own for exploring, where SB3 tosses one for all. In a world that masks actions, an ``SB3VecEnv`` on it, only allowed
    ones are explored, chosen and bootstrapped from. Any other environment goes through SB3's loop, which heeds no
    masks: one that has them is refused.

    A variant replaces ``sample_batch``, ``next_values``, ``critic_target``, ``critic_loss`` or ``critic_penalty``. An
    update descends ``critic_loss(Q(s, a), critic_target(batch), weights) + critic_penalty(Q(s, .), batch)``.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" (Dict observations), "ActionSetPolicy" (actions with
            features), or a class derived from ``DQNPolicy``, whose arguments ``dueling, head_arch, batch_norm, xavier``
            are among the ``policy_kwargs``.
        env: of SB3; see above.
        double: the online network chooses the action that the target network values (van Hasselt et al. 2016).
        prioritized: draw transitions by their last errors (``Priorities``).
        priority_alpha: of the priorities.
        priority_beta: of the importance weights; a number, or a schedule as SB3's learning rates.
        priority_eps: of the priorities.
        priority_initial: of the priorities; what the first transitions get.
        n_steps: steps of a transition (``TensorReplayBuffer``).
        target_update_interval: environment steps between two moves of the target network by ``tau``; 0 moves it before
            every gradient step instead.
        **options: SB3's ``learning_rate, buffer_size, learning_starts, batch_size, tau, gamma, train_freq,
            gradient_steps, replay_buffer_class, replay_buffer_kwargs, exploration_fraction, exploration_initial_eps,
            exploration_final_eps, max_grad_norm, stats_window_size, tensorboard_log, policy_kwargs, verbose, seed,
            device``.

    Raises:
        InputError: VecNormalize, a number out of its range, or a ``replay_buffer_class`` that cannot do what
            ``prioritized`` and ``n_steps`` ask for.
    """

    takes_masks = True
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": DQNPolicy,
        "CnnPolicy": CnnDQNPolicy,
        "MultiInputPolicy": MultiInputDQNPolicy,
        "ActionSetPolicy": ActionSetPolicy,
    }
    saved_arguments: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "buffer_size", "learning_starts", "batch_size", "tau", "gamma", "train_freq"),
        *("gradient_steps", "double", "n_steps", "prioritized", "priority_alpha", "priority_beta", "priority_eps"),
        *("priority_initial", "target_update_interval"),
        *("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"),
        *("max_grad_norm", "stats_window_size", "tensorboard_log", "policy_kwargs", "verbose", "seed"),
    )
    resumed_attributes: ClassVar[tuple[str, ...]] = (
        *DeviceAlgorithm.resumed_attributes,
        *("_n_calls", "exploration_rate"),
    )

    def __init__(
        self,
        policy: str | type[DQNPolicy],
        env: Any,
        *,
        double: bool = False,
        n_steps: int = 1,
        prioritized: bool = False,
        priority_alpha: float = 0.6,
        priority_beta: Any = 0.4,
        priority_eps: float = 1e-6,
        priority_initial: float = 1.0,
        target_update_interval: int = 10_000,
        _init_setup_model: bool = True,
        **options: Any,
    ) -> None:
        if n_steps < 1:
            raise InputError(f"n_steps: {n_steps}; allowed: at least 1")
        if target_update_interval < 0:
            raise InputError(f"target_update_interval: {target_update_interval}; allowed: at least 0")
        if isinstance(options.get("train_freq"), list):  # as JSON has it
            options["train_freq"] = tuple(options["train_freq"])
        super().__init__(policy, env, target_update_interval=target_update_interval, _init_setup_model=False, **options)
        self.double, self.n_steps, self.prioritized = double, n_steps, prioritized
        self.priority_alpha, self.priority_beta, self.priority_eps = priority_alpha, priority_beta, priority_eps
        self.priority_initial = priority_initial
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        if self.env is not None:
            self.replay_buffer = self._new_replay(self.env)
        policy: Any = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )
        self.policy = policy.to(self.device)
        self._convert_train_freq()
        self._create_aliases()
        self.exploration_schedule = LinearSchedule(
            self.exploration_initial_eps, self.exploration_final_eps, self.exploration_fraction
        )
        self._beta_schedule = FloatSchedule(self.priority_beta)
        self._good: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._loss: Tensor | None = None
        self._unchecked = 0

    def _create_aliases(self) -> None:
        super()._create_aliases()
        # Behind a move of the weights the target has the statistics of a batch normalisation as well.
        target, online = self.q_net_target, self.q_net
        self._weights: tuple[list[Tensor], list[Tensor]] = (list(target.parameters()), list(online.parameters()))
        self._statistics = list(target.buffers()), list(online.buffers())

    def _new_replay(self, env: VecEnv) -> ReplayBuffer:
        own = PrioritizedReplayBuffer if self.prioritized else TensorReplayBuffer
        kind, kwargs = self.replay_buffer_class or own, dict(self.replay_buffer_kwargs)
        if not issubclass(kind, own) and (self.prioritized or self.n_steps > 1):
            raise InputError(
                f"replay_buffer_class: {kind.__name__}; allowed with prioritized or n_steps: {own.__name__}, or one "
                "derived from it"
            )
        if issubclass(kind, TensorReplayBuffer):
            masked = isinstance(env, SB3VecEnv) and env.episodes.masked
            kwargs = {"n_steps": self.n_steps, "gamma": self.gamma, "masked": masked} | kwargs
        if issubclass(kind, PrioritizedReplayBuffer):
            given = {"alpha": self.priority_alpha, "eps": self.priority_eps, "initial": self.priority_initial}
            kwargs = given | kwargs
        return kind(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            **kwargs,
        )

    def _holds(self, memory: ReplayBuffer, env: VecEnv) -> bool:
        """Whether the memory has a place for what the environment gives."""
        masked = isinstance(env, SB3VecEnv) and env.episodes.masked
        return memory.n_envs == self.n_envs and getattr(memory, "masked", masked) == masked

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[int, BaseCallback]:
        if self.env is not None and (self.replay_buffer is None or not self._holds(self.replay_buffer, self.env)):
            self.replay_buffer = self._new_replay(self.env)
        # SB3 resets the environment then.
        if isinstance(self.replay_buffer, TensorReplayBuffer) and (reset_num_timesteps or self._last_obs is None):
            self.replay_buffer.cut()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)

    # ---- roll-out

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """SB3's ``predict``; tensors ``(n, ...)`` of observations, or a dict of them, give a tensor of actions.

        ``action_masks`` ``(n, actions)`` says what is allowed, as in sb3-contrib.
        """
        tensors = isinstance(observation, Tensor) or (
            isinstance(observation, dict) and all(isinstance(x, Tensor) for x in observation.values())
        )
        if not tensors and action_masks is None:
            return stable_baselines3.DQN.predict(self, observation, state, episode_start, deterministic)
        self.policy.set_training_mode(False)
        batched = True
        if not tensors:
            observation, batched = self.policy.obs_to_tensor(observation)
        masks = None
        if action_masks is not None:
            masks = torch.as_tensor(action_masks, device=self.device).bool()
            masks = masks.reshape(-1, masks.shape[-1])
        actions = self._choose(observation, masks, 0.0 if deterministic else self.exploration_rate)
        if tensors:
            return actions, state
        array = actions.cpu().numpy()
        return (array if batched else array[0]), state

    @torch.no_grad()
    def _choose(self, observations: Any, masks: Tensor | None, epsilon: float) -> Tensor:
        """Actions ``(n,)``: the greedy ones, or with probability ``epsilon`` each a uniform one."""
        greedy = _greedy(self.q_net(observations), masks).squeeze(1)
        if epsilon <= 0:
            return greedy
        explores = torch.rand(len(greedy), device=self.device) < epsilon
        return torch.where(explores, self._uniform(len(greedy), masks), greedy)

    def _uniform(self, rows: int, masks: Tensor | None) -> Tensor:
        """Actions ``(rows,)``, each allowed one with the same probability."""
        assert isinstance(self.action_space, spaces.Discrete)
        if masks is None:
            return torch.randint(int(self.action_space.n), (rows,), device=self.device)
        return torch.rand(masks.shape, device=self.device).masked_fill(~masks, -1.0).argmax(1)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Steps of all rows into the memory: on the device for an ``SB3VecEnv``, else by SB3's loop."""
        if not (isinstance(env, SB3VecEnv) and isinstance(replay_buffer, TensorReplayBuffer)):
            if is_masked(env):
                raise InputError(
                    f"env: {type(env).__name__} masks actions, which SB3's loop does not heed; allowed: an SB3VecEnv "
                    "as it is, with a TensorReplayBuffer"
                )
            return super().collect_rollouts(
                env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
            )
        if env.num_envs > 1 and train_freq.unit.value == "episode":
            raise InputError("train_freq: in episodes; allowed: in steps, with more than one row")
        self.policy.set_training_mode(False)
        obs: Any = self._on_device(self._last_obs)
        self._last_obs = obs
        callback.on_rollout_start()
        watched = not (isinstance(callback, ConvertCallback) and callback.callback is None)
        this: Any = self
        ended, steps, episodes = EndedEpisodes(env), 0, 0
        while should_collect_more_steps(train_freq, steps, episodes):
            masks = self._masks(env)
            if self.num_timesteps < learning_starts:
                actions = self._uniform(env.num_envs, masks)
            else:
                actions = self._choose(obs, masks, self.exploration_rate)
            step = env.step_tensor(actions)
            if env.device != self.device:
                step = tree.map_tensors(lambda x: x.to(self.device), step)
            self.num_timesteps += env.num_envs
            steps += 1
            dones = step.terminated | step.truncated
            if watched:
                callback.update_locals({"actions": actions, **shown(env, step, dones)})
            if not callback.on_step():
                ended.push(this)
                return RolloutReturn(steps * env.num_envs, episodes, continue_training=False)
            ended.add(step)
            reached = step.info["action_mask"].bool().flatten(0, -2) if replay_buffer.masked else None
            replay_buffer.add_tensor(
                obs, step.final_obs, actions, step.reward, step.terminated, step.truncated, reached
            )
            obs = step.obs
            self._last_obs, self._last_episode_starts = obs, dones  # type: ignore[assignment]
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
            if step.ended:
                over = int(dones.sum())
                episodes += over
                before, self._episode_num = self._episode_num, self._episode_num + over
                if log_interval is not None and before // log_interval < self._episode_num // log_interval:
                    ended.push(this)
                    ended = EndedEpisodes(env)
                    self.dump_logs()
        ended.push(this)
        callback.on_rollout_end()
        return RolloutReturn(steps * env.num_envs, episodes, continue_training=True)

    def _masks(self, env: SB3VecEnv) -> Tensor | None:
        if not env.episodes.masked:
            return None
        return env.episodes.action_mask().flatten(0, -2).to(self.device)

    def _on_device(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {key: self._on_device(value) for key, value in observation.items()}
        return torch.as_tensor(observation, device=self.device)

    def _on_step(self) -> None:
        self._n_calls += 1
        interval = self.target_update_interval
        if interval and self._n_calls % max(interval // self.n_envs, 1) == 0:
            self._move_target()
        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        self.logger.record("rollout/exploration_rate", self.exploration_rate)

    def dump_logs(self) -> None:
        """Write the log, waiting for the device."""
        if self._loss is not None:
            self.logger.record("train/loss", float(self._loss))
        super().dump_logs()

    # ---- update

    def next_values(self, batch: ReplayBatch) -> Tensor:
        """``(N, 1)`` what the target network says of the greedy allowed action at the end of each transition."""
        values: Tensor = self.q_net_target(batch.next_observations)
        judged = values
        if self.double:
            # The choice of the action is no part of the fit: without dropout, and by the statistics of all batches.
            training = self.q_net.training
            self.q_net.set_training_mode(False)
            judged = self.q_net(batch.next_observations)
            self.q_net.set_training_mode(training)
        return values.gather(1, _greedy(judged, batch.next_masks))

    def critic_target(self, batch: ReplayBatch) -> Tensor:
        """``(N, 1)`` rewards and, unless the world ended the episode, the discounted value of what follows."""
        discounts = self.gamma if batch.discounts is None else batch.discounts
        return batch.rewards + (1 - batch.dones) * discounts * self.next_values(batch)

    def critic_loss(self, q: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """Mean Huber loss, weighted; all ``(N, 1)``."""
        if weights is None:
            return functional.smooth_l1_loss(q, target)
        return (weights * functional.smooth_l1_loss(q, target, reduction="none")).mean()

    def critic_penalty(self, q_values: Tensor, batch: ReplayBatch) -> Tensor | float:
        """Added to the loss, nothing by default; ``q_values`` ``(N, actions)`` are those of the observations."""
        return 0.0

    def sample_batch(self, batch_size: int) -> ReplayBatch:
        """What an update learns from; those with positions in a prioritised memory are the first rows."""
        memory: Any = self.replay_buffer
        batch = memory.sample(batch_size)
        # SB3's memories have fewer fields.
        return batch if isinstance(batch, ReplayBatch) else ReplayBatch(*batch)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Gradient steps on transitions of the memory.

        Raises:
            TrainingDiverged: a loss or a parameter is no longer finite; the networks and the optimiser are those of the
                last look, of which there is one in a hundred updates.
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if (priorities := getattr(self.replay_buffer, "priorities", None)) is not None:
            priorities.beta = self._beta_schedule(self._current_progress_remaining)
        if self._good is None:
            self._good = self._copied()
        losses = []
        for _ in range(gradient_steps):
            losses.append(self._update(self.sample_batch(batch_size)))
        self._loss = torch.stack(losses).mean()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self._unchecked += gradient_steps
        if self._unchecked >= CHECK_EVERY:
            self._check()

    def _update(self, batch: ReplayBatch) -> Tensor:
        """One gradient step; its loss."""
        if self.target_update_interval == 0:
            self._move_target()
        with torch.no_grad():
            target = self.critic_target(batch)
        q_values = self.q_net(batch.observations)
        q = q_values.gather(1, batch.actions.long())
        loss = self.critic_loss(q, target, batch.weights) + self.critic_penalty(q_values, batch)
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm < math.inf:
            torch.nn.utils.clip_grad_norm_(self._weights[1], self.max_grad_norm)
        optimizer.step()
        if batch.positions is not None:
            memory: Any = self.replay_buffer
            errors = (target - q.detach()).squeeze(1)[: len(batch.positions)]
            memory.priorities.update(batch.positions, errors)
        return loss.detach()

    @torch.no_grad()
    def _move_target(self) -> None:
        """theta_target <- theta_target + tau (theta - theta_target); the statistics of batches are copied."""
        target, online = self._weights
        torch._foreach_lerp_(target, online, self.tau)
        if self._statistics[0]:
            torch._foreach_copy_(*self._statistics)

    def _check(self) -> None:
        """Refuse numbers that are not finite, waiting for the device once."""
        self._unchecked = 0
        assert self._loss is not None
        if bool(torch.isfinite(self._loss + torch.nn.utils.parameters_to_vector(self._weights[1]).detach().sum())):
            self._good = self._copied()
            return
        assert self._good is not None
        self.policy.load_state_dict(self._good[0])
        self.policy.optimizer.load_state_dict(self._good[1])
        raise TrainingDiverged(
            f"a loss or parameter is not finite after {self._n_updates} updates; last good parameters restored"
        )

    def _copied(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return copy.deepcopy((self.policy.state_dict(), self.policy.optimizer.state_dict()))

    # ---- files

    def memory_tensors(self) -> dict[str, Tensor]:
        """The replay memory, for ``save_state``."""
        if not isinstance(self.replay_buffer, TensorReplayBuffer):
            raise InputError(f"replay_buffer_class: {type(self.replay_buffer).__name__}; allowed: TensorReplayBuffer")
        return self.replay_buffer.state_tensors()

    def load_memory_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``memory_tensors``."""
        memory: Any = self.replay_buffer
        memory.load_state_tensors(tensors)
        self._good = None

    def _excluded_save_params(self) -> list[str]:
        own = ["_weights", "_statistics", "_good", "_loss", "_beta_schedule"]
        return [*super()._excluded_save_params(), *own]


def _greedy(q_values: Tensor, masks: Tensor | None) -> Tensor:
    """``(n, 1)`` the allowed action of the largest value."""
    return (q_values if masks is None else q_values.masked_fill(~masks, -math.inf)).argmax(1, keepdim=True)
