"""V-RACER with ReF-ER: an off-policy actor-critic that remembers near-policy experience and forgets the rest."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any, ClassVar, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from core.errors import InputError
from core.rl.algorithm import DeviceAlgorithm, TrainingDiverged
from core.rl.episode_replay import EpisodeReplayBuffer
from core.rl.rollout import EndedEpisodes, env_action, shown
from core.rl.unvalidated import unvalidated
from core.simulation import tree
from core.simulation.sb3_vec_env import SB3VecEnv

_LARGEST_LOG_RATIO = 7.0
_SMALLEST_DEVIATION = 1e-6  # below it an observation counts as constant: rounding makes up its variance


class VRACERPolicy(BasePolicy):
    """One tanh network from the observation to (V, m, s): u ~ N(m, sigma^2), the action is tanh(u).

    sigma = 2 sigma_0 softplus(s) with the algebraic softplus(s) = (s + sqrt(1 + s^2)) / 2, hence sigma = sigma_0 at
    s = 0, near which the weights of the last layer, 1e-3 of the usual ones, begin. In the action space's units a Box's
    bounds take the place of -1 and 1.

    Args:
        observation_space: a Box.
        action_space: a Box.
        sigma: sigma_0.
        net_arch: widths of the hidden layers.

    Attributes:
        net: ``Linear, Tanh, ..., Linear``; reads observations less ``observation_mean`` over ``observation_std``.
        beta: ReF-ER's weight of the policy gradient against the divergence from the behaviours.
    """

    observation_mean: Tensor
    observation_std: Tensor
    beta: Tensor

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        *,
        sigma: float,
        net_arch: tuple[int, ...] | list[int] = (128, 128),
    ) -> None:
        super().__init__(observation_space, action_space, squash_output=True)
        self.sigma = sigma
        self.dimension = math.prod(action_space.shape)
        widths = [math.prod(observation_space.shape), *net_arch]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        last = nn.Linear(widths[-1], 1 + 2 * self.dimension)
        with torch.no_grad():
            last.weight.mul_(1e-3)
            last.bias.mul_(1e-3)
        self.net = nn.Sequential(*layers, last)
        self.register_buffer("observation_mean", torch.zeros(widths[0]))
        self.register_buffer("observation_std", torch.ones(widths[0]))
        # A tensor among the weights: it changes with every update, on the device, and is saved with them.
        self.register_buffer("beta", torch.zeros(()))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """V ``(n,)``, m and sigma ``(n, d)``."""
        standard = (observation.flatten(1) - self.observation_mean) / self.observation_std
        value, mean, s = self.net(standard).split((1, self.dimension, self.dimension), dim=1)
        return value.squeeze(1), mean, self.sigma * torch.exp(torch.asinh(s))  # = s + sqrt(1 + s^2), without cancelling

    def standardise(self, observations: Tensor) -> None:
        """From now on subtract the mean of these observations ``(..., *shape)`` and divide by their deviation.

        Numbers that do not vary are not divided.
        """
        std, mean = torch.std_mean(observations.reshape(-1, len(self.observation_mean)), dim=0, correction=0)
        self.observation_mean.copy_(mean)
        self.observation_std.copy_(torch.where(std > _SMALLEST_DEVIATION, std, 1.0))

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        _, mean, std = self(observation)
        u = mean if deterministic else mean + std * torch.randn_like(mean)
        return torch.tanh(u).unflatten(1, self.action_space.shape or ())


class VRACER(DeviceAlgorithm):
    """V-RACER with Remember and Forget Experience Replay (Novati and Koumoutsakos, ICML 2019).

    After each step of B copies of the world, ``updates_per_experience`` * B updates on ``batch_size`` samples of whole
    past episodes. With V, pi = N(m, sigma^2) of the network, mu the behaviour, rho = pi(u) / mu(u) and Vtbc, Qret of
    ``EpisodeReplayBuffer``, an update descends the mean of

        (Vtbc - V)^2 / 2 - beta [1/c < rho < c] (Qret - V) rho + (1 - beta) KL(mu || pi)

    in pi and in the first V alone. c = ``cutoff`` / (1 + ``annealing`` n) after n updates, and the step size is
    annealed likewise. Then beta <- (1 - lr) beta, plus lr unless more than ``target`` of all samples are far (rho
    outside the interval when last seen). Observations are standardised once, at the first update, and rewards every
    ``rescale_every`` updates, with the statistics of the memory.

    An experience is a step of one copy, with all of its agents; each agent's step is a sample, and ``num_timesteps``
    counts those, as elsewhere. Learning begins with ``replay_start`` experiences, once an episode is over.

    Args:
        policy: "MlpPolicy", or a class derived from ``VRACERPolicy``.
        env: an ``SB3VecEnv`` whose observations and actions are boxes.
        learning_rate: of Adam.
        gamma: discount factor.
        batch_size: samples of an update.
        replay_start: experiences before the first update.
        replay_size: experiences kept.
        updates_per_experience: updates after a step of one copy.
        sigma: standard deviation of the first actions, before the tanh.
        l2: weight decay, added to the gradient.
        cutoff: C.
        target: share of far samples aimed at.
        initial_beta: beta before the first update.
        annealing: of cut-off and step size, for each update.
        rescale_every: updates between two rescalings of the rewards; None leaves them as they are.
        n_steps: steps of each copy between two looks at the numbers, lines of a learning curve and saved states; the
            learning does not depend on it.
        stats_window_size: episodes over which the log averages.
        tensorboard_log: as in SB3.
        policy_kwargs: ``net_arch``, the widths of the hidden layers.
        verbose: as in SB3.
        seed: of network, actions and world.
        device: where to compute.

    Raises:
        InputError: a number out of its range, another kind of environment or space, or a memory that is smaller than
            an episode.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": VRACERPolicy}
    saved_arguments: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "gamma", "batch_size", "replay_start", "replay_size", "updates_per_experience", "sigma"),
        *("l2", "cutoff", "target", "initial_beta", "annealing", "rescale_every", "n_steps"),
        *("stats_window_size", "tensorboard_log", "policy_kwargs", "verbose", "seed"),
    )
    resumed_attributes: ClassVar[tuple[str, ...]] = (*DeviceAlgorithm.resumed_attributes, "_updates_due")
    policy: VRACERPolicy

    def __init__(
        self,
        policy: str | type[VRACERPolicy],
        env: Any,
        *,
        learning_rate: float = 1e-4,
        gamma: float = 0.995,
        batch_size: int = 256,
        replay_start: int = 10_000,
        replay_size: int = 100_000,
        updates_per_experience: float = 1.0,
        sigma: float = 0.05,
        l2: float = 1e-4,
        cutoff: float = 5.0,
        target: float = 0.1,
        initial_beta: float = 0.3,
        annealing: float = 5e-8,
        rescale_every: int | None = 1000,
        n_steps: int = 100,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.gamma, self.batch_size, self.replay_start, self.replay_size = gamma, batch_size, replay_start, replay_size
        self.updates_per_experience, self.sigma, self.l2, self.cutoff = updates_per_experience, sigma, l2, cutoff
        self.target, self.initial_beta, self.annealing = target, initial_beta, annealing
        self.rescale_every, self.n_steps = rescale_every, n_steps
        positive = ("learning_rate", "updates_per_experience", "sigma", "batch_size", "replay_start", "n_steps")
        given = {"learning_rate": learning_rate, **self.__dict__}
        for names, low, high, allowed in (
            (positive, 0.0, math.inf, "greater than 0"),
            (("cutoff",), 1.0, math.inf, "greater than 1"),
            (("gamma",), 0.0, math.nextafter(1, 2), "greater than 0 and at most 1"),
            (("target", "initial_beta"), -math.ulp(0), math.nextafter(1, 2), "0 to 1"),
            (("l2", "annealing"), -math.ulp(0), math.inf, "at least 0"),
        ):
            for name in names:
                if not low < given[name] < high:
                    raise InputError(f"{name}: {given[name]}; allowed: {allowed}")
        if rescale_every is not None and rescale_every < 1:
            raise InputError(f"rescale_every: {rescale_every}; allowed: at least 1, or None")
        super().__init__(
            policy,
            env,
            learning_rate,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
        )
        self.replay: EpisodeReplayBuffer | None = None
        self._updates_due = 0.0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        for name in ("observation_space", "action_space"):
            if not isinstance(space := getattr(self, name), spaces.Box):
                raise InputError(f"{name}: {type(space).__name__}; allowed: Box")
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        kind: Any = self.policy_class
        self.policy = kind(self.observation_space, self.action_space, sigma=self.sigma, **self.policy_kwargs)
        self.policy.beta.fill_(self.initial_beta)
        self.policy = self.policy.to(self.device)
        self.policy.optimizer = torch.optim.Adam(
            self.policy.parameters(), lr=self.lr_schedule(1.0), weight_decay=self.l2
        )
        if self.env is not None:
            self.replay = self._new_replay(self.env)

    def _new_replay(self, env: Any) -> EpisodeReplayBuffer:
        if not isinstance(env, SB3VecEnv):
            raise InputError(f"env: {type(env).__name__}; allowed: SB3VecEnv")
        copies = env.episodes.num_envs
        slots, horizon = self.replay_size // copies, env.episodes.horizon or 1
        if slots < horizon:
            raise InputError(
                f"replay_size: {self.replay_size}; allowed: at least {horizon * copies}, an episode of each copy"
            )
        if self.replay_start > slots * copies:
            raise InputError(
                f"replay_start: {self.replay_start}; allowed: at most {slots * copies}, as replay_size says"
            )
        shape, dimension = self.observation_space.shape or (), math.prod(self.action_space.shape or ())
        return EpisodeReplayBuffer(slots, env.num_envs, shape, dimension, gamma=self.gamma, device=self.device)

    @unvalidated()
    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 1,
        tb_log_name: str = "VRACER",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for so many steps of the rows of the environment; arguments as in SB3.

        The replay memory stays from one call to the next. Where the call begins with new episodes
        (``reset_num_timesteps``), the running ones are kept as truncated.

        Raises:
            TrainingDiverged: a loss or a parameter is no longer finite; the parameters and the optimiser are those of
                the last look (see ``n_steps``).
            InputError: the memory is full, and no episode has ended yet.
        """
        env: Any = self.env
        if self._last_obs is None or self.replay is None:
            self.replay = self._new_replay(env)
        elif reset_num_timesteps:
            obs = torch.as_tensor(self._last_obs, device=self.device)
            with torch.no_grad():
                self.replay.cut(obs, self.policy(obs)[0])
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        iteration = 0
        while self.num_timesteps < total_timesteps and self._iterate(env, callback, self.replay, total_timesteps):
            iteration += 1
            self._record(self.replay, dump=log_interval > 0 and iteration % log_interval == 0)
        callback.on_training_end()
        return self

    def _iterate(self, env: SB3VecEnv, callback: BaseCallback, replay: EpisodeReplayBuffer, total: int) -> bool:
        """``n_steps`` steps and the updates between them; False if the callback stopped the training."""
        self.policy.set_training_mode(False)
        obs: Any = torch.as_tensor(self._last_obs, device=self.device)
        self._last_obs = obs
        callback.on_rollout_start()
        good = copy.deepcopy((self.policy.state_dict(), self.policy.optimizer.state_dict()))
        watched = not (isinstance(callback, ConvertCallback) and callback.callback is None)
        ended = EndedEpisodes(env)
        this: Any = self
        self._loss: Tensor | None = None
        for _ in range(self.n_steps):
            with torch.no_grad():
                values, means, stds = self.policy(obs)
                u = means + stds * torch.randn_like(means)
                actions = torch.tanh(u).unflatten(1, self.action_space.shape or ())
            step = env.step_tensor(env_action(self, actions))
            if env.device != self.device:
                step = tree.map_tensors(lambda x: x.to(self.device), step)
            self.num_timesteps += env.num_envs
            self._update_current_progress_remaining(self.num_timesteps, total)
            if watched:
                callback.update_locals(shown(env, step, step.terminated | step.truncated))
            if not callback.on_step():
                ended.push(this)
                return False
            ended.add(step)
            replay.add(obs, u, step.reward, means, stds, values)
            dones = step.terminated | step.truncated
            # A world without early ends may have them after all, by a fault, which ``step.ended`` does not tell.
            if step.ended or bool(dones.any()):
                final: Any = step.final_obs
                with torch.no_grad():
                    replay.end(step.terminated, step.truncated, final, self.policy(final)[0])
            obs = step.obs
            self._last_obs, self._last_episode_starts = obs, dones  # type: ignore[assignment]
            self._train(replay, env.episodes.num_envs)
            if self.num_timesteps >= total:
                break
        ended.push(this)
        self._check(good)
        callback.on_rollout_end()
        return True

    def _train(self, replay: EpisodeReplayBuffer, copies: int) -> None:
        """The updates that a step of so many copies allows."""
        if not bool(replay.samples.any()):
            if replay.filled == replay.slots:
                raise InputError(
                    f"replay_size: {self.replay_size}, and no episode ended within it; allowed: more than an episode "
                    f"of each copy (or give the environment a horizon)"
                )
            return
        if replay.filled * copies < self.replay_start:
            return
        self._updates_due += self.updates_per_experience * copies
        while self._updates_due >= 1:
            self._update(replay)
            self._updates_due -= 1

    def _update(self, replay: EpisodeReplayBuffer) -> None:
        """One gradient step and all that follows from it; nothing waits for the device."""
        policy, n = self.policy, self._n_updates
        if n == 0:
            policy.standardise(replay.data["observations"][: replay.filled])
        if self.rescale_every is not None and n % self.rescale_every == 0:
            replay.rescale()
        if n == 0:
            replay.retrace_all()
        annealed = 1 + self.annealing * n
        rate, cutoff = self.lr_schedule(1.0) / annealed, self.cutoff / annealed

        positions = replay.sample(self.batch_size)
        u, mean, std = (replay.take(name, positions) for name in ("actions", "means", "stds"))
        behaviour = Normal(mean, std)
        values, *present = policy(replay.take("observations", positions))
        target = Normal(*present)
        log_ratio = (target.log_prob(u) - behaviour.log_prob(u)).sum(1)
        ratio = log_ratio.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()
        near = (ratio.detach() > 1 / cutoff) & (ratio.detach() < cutoff)
        with torch.no_grad():
            final_values, *_ = policy(replay.take("final_observations", positions))
            replay.refresh(positions, values, ratio, ~near, final_values)
            vtbc, qret = replay.targets(positions)
            advantage = torch.where(near, qret - values, 0.0)
        divergence = kl_divergence(behaviour, target).sum(1)
        errors = 0.5 * (vtbc - values).square()
        self._loss = (errors - policy.beta * advantage * ratio + (1 - policy.beta) * divergence).mean()

        policy.optimizer.zero_grad()
        self._loss.backward()
        for group in policy.optimizer.param_groups:
            group["lr"] = rate
        policy.optimizer.step()
        with torch.no_grad():
            trusted = replay.far_count <= self.target * replay.samples.sum()
            policy.beta.mul_(1 - rate).add_(rate * trusted)
        self._n_updates += 1

    def _check(self, good: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Refuse numbers that are not finite, waiting for the device once."""
        if self._loss is None:
            return
        parameters = torch.nn.utils.parameters_to_vector(self.policy.parameters())
        if not bool(torch.isfinite(self._loss.detach() + parameters.detach().sum())):
            self.policy.load_state_dict(good[0])
            self.policy.optimizer.load_state_dict(good[1])
            raise TrainingDiverged(
                f"a loss or parameter is not finite after {self.num_timesteps} steps; last good parameters restored"
            )

    def _record(self, replay: EpisodeReplayBuffer, dump: bool) -> None:
        """Log what one watches of ReF-ER."""
        if not dump:
            return
        if self.ep_info_buffer:
            mean = sum(episode["r"] for episode in self.ep_info_buffer) / len(self.ep_info_buffer)
            self.logger.record("rollout/ep_rew_mean", mean)
        if self._loss is not None:
            self.logger.record("train/loss", float(self._loss.detach()))
            self.logger.record("train/beta", float(self.policy.beta))
            self.logger.record("train/far_share", float(replay.far_count / replay.samples.sum()))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    def memory_tensors(self) -> dict[str, Tensor]:
        """The replay memory, for ``save_state``."""
        assert self.replay is not None
        return self.replay.tensors()

    def load_memory_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``memory_tensors``."""
        self.replay = self._new_replay(self.env)
        self.replay.load_tensors(tensors)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "replay", "_loss"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
