"""Policy gradient for trajectories whose worth is a submodular function of all that they hold."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from core.errors import InputError
from core.rl.buffers import Array, TensorRolloutBuffer
from core.rl.masks import MaskedCnnPolicy, MaskedPolicy
from core.rl.ppo import PPO, Minibatch
from core.simulation.sb3_vec_env import SB3VecEnv

CREDITS = ("return", "one_step")


class WholeEpisodes(TensorRolloutBuffer):
    """Roll-outs that begin with an episode: each step is credited with its return less that of its time step.

    ``advantages[t] = returns[t] - b[i]`` where i is the step's place in its episode and b[i] the mean return of all
    steps at that place. A step of an episode that the roll-out's end cuts short has no return yet: its advantage is 0.
    """

    @torch.no_grad()
    def compute_returns_and_advantage(self, last_values: Tensor, dones: Array) -> None:
        """Returns to go and their differences to the mean of the time step.

        Raises:
            InputError: no episode ended within the roll-out.
        """
        super().compute_returns_and_advantage(last_values, dones)
        returns, starts = self.data["returns"], self.data["episode_starts"].bool()
        last = torch.as_tensor(dones, device=self.device).reshape(1, -1).bool()
        ends = torch.cat([starts[1:], last])
        whole = ends.flip(0).cummax(0).values.flip(0).to(returns)
        if not bool(whole.any()):
            raise InputError(
                f"n_steps: {self.buffer_size}, no episode ended within them; allowed: at least an episode's length"
            )
        t = torch.arange(len(returns), device=self.device).unsqueeze(1)
        clock = (t - torch.where(starts, t, 0).cummax(0).values).flatten()
        count = returns.new_zeros(len(returns)).index_add_(0, clock, whole.flatten())
        total = torch.zeros_like(count).index_add_(0, clock, (whole * returns).flatten())
        baseline = (total / count.clamp(min=1))[clock].view_as(returns)
        self.data["advantages"].copy_(whole * (returns - baseline))


class SubPO(PPO):
    """Submodular policy optimisation (Prajapat et al., ICLR 2024): REINFORCE on marginal gains.

    A trajectory is worth F(tau), monotone submodular. A world that pays the gains
    Delta_j = F(tau_{0:j+1}) - F(tau_{0:j}) as rewards (``core.rl.submodular``) turns the gradient of E F into

        E sum_i grad log pi(a_i | s_i) [ sum_{j >= i} Delta_j - b_i ],

    with b_i the mean return to go of the batch at time step i. One gradient step a roll-out, on all of it; there is no
    critic (SB3's value head is kept at zero). With observations of the present the policy is SubPO-M, with ones that
    hold the history SubPO-NM. Actions that the environment masks have probability 0 in roll-outs and in training.

    Every roll-out begins with new episodes, so ``n_steps`` should be the length of an episode or a multiple of it: what
    is left at the end is thrown away.

    Args:
        policy: "MlpPolicy", "CnnPolicy", or a class derived from ``MaskedPolicy``.
        env: with observations of one tensor.
        n_steps: steps of a roll-out in each environment.
        learning_rate: of Adam.
        credit: "return", or "one_step", which credits an action with its own gain alone (in expectation what the
            authors' published code does).
        ent_coef: weight of the policy's entropy.
        normalize_advantage: divide the credits of a roll-out by their standard deviation.
        max_grad_norm: the gradient is cut to this length.
        **options: ``stats_window_size, tensorboard_log, policy_kwargs, verbose, seed, device`` of SB3.

    Raises:
        InputError: an unknown credit, or Dict observations; in ``learn``, a roll-out in which no episode ends.
    """

    policy_aliases: ClassVar[dict[str, type[Any]]] = {"MlpPolicy": MaskedPolicy, "CnnPolicy": MaskedCnnPolicy}
    saved_arguments: ClassVar[tuple[str, ...]] = (
        *("n_steps", "learning_rate", "credit", "ent_coef", "normalize_advantage", "max_grad_norm"),
        *("stats_window_size", "tensorboard_log", "policy_kwargs", "verbose", "seed"),
    )
    rollout_buffer: WholeEpisodes
    policy: MaskedPolicy

    def __init__(
        self,
        policy: str | type[MaskedPolicy],
        env: Any,
        *,
        n_steps: int,
        learning_rate: Any = 3e-3,
        credit: str = "return",
        ent_coef: float = 0.01,
        normalize_advantage: bool = True,
        max_grad_norm: float = 0.5,
        **options: Any,
    ) -> None:
        if credit not in CREDITS:
            raise InputError(f"credit: {credit!r}; allowed: {', '.join(CREDITS)}")
        self.credit = credit
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=max(n_steps, 2),
            n_epochs=1,
            # Without a critic TD(1) returns are plain sums of rewards, and with gamma = 0 the rewards themselves.
            gamma=1.0 if credit == "return" else 0.0,
            gae_lambda=1.0,
            ent_coef=ent_coef,
            vf_coef=0.0,
            normalize_advantage=normalize_advantage,
            max_grad_norm=max_grad_norm,
            rollout_buffer_class=WholeEpisodes,
            **options,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self.batch_size = self.n_steps * self.n_envs  # all of the roll-out
        for parameter in self.policy.value_net.parameters():
            torch.nn.init.zeros_(parameter)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with new episodes under the environment's masks, and start afresh behind them."""
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            if not bool(torch.as_tensor(self._last_episode_starts).all()):
                self._last_obs = env.reset_tensor() if isinstance(env, SB3VecEnv) else env.reset()  # type: ignore[assignment]
                self._last_episode_starts = np.ones(env.num_envs, dtype=bool)

    def policy_loss(self, batch: Minibatch) -> Tensor:
        """The score function weighted by the credits, negated."""
        return -(batch.advantages * batch.log_prob).mean()

    def value_loss(self, batch: Minibatch) -> Tensor:
        """None: there is no critic."""
        return batch.values.new_zeros(())
