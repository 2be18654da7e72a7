"""Policies that never choose what the world forbids, in roll-outs, in training and in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from core.errors import InputError
from core.rl.buffers import TensorRolloutBuffer
from core.simulation.sb3_vec_env import SB3VecEnv

FORBIDDEN = -1e8
"""The logit of a forbidden action: far below any other, so that its probability is exactly 0, and still finite."""


class MaskedPolicy(ActorCriticPolicy):
    """SB3's actor-critic policy, which never chooses what ``mask`` (n, actions) forbids; None allows everything."""

    mask: Tensor | None = None

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        if self.mask is None or not isinstance(self.action_dist, CategoricalDistribution):
            return super()._get_action_dist_from_latent(latent_pi)
        logits = self.action_net(latent_pi).masked_fill(~self.mask, FORBIDDEN)
        return self.action_dist.proba_distribution(action_logits=logits)


class MaskedCnnPolicy(MaskedPolicy, ActorCriticCnnPolicy):
    """The same on images."""


@contextmanager
def masking(policy: Any, mask: Tensor | None) -> Iterator[None]:
    """Let the policy choose among the actions that ``mask`` (n, actions) allows, in this block.

    Raises:
        InputError: a mask for a policy that takes none.
    """
    if not isinstance(policy, MaskedPolicy):
        if mask is not None:
            raise InputError(f"policy: {type(policy).__name__} takes no masks; allowed: one derived from MaskedPolicy")
        yield
        return
    before, policy.mask = policy.mask, mask
    try:
        yield
    finally:
        policy.mask = before


@contextmanager
def masked_rollout(policy: Any, env: VecEnv, buffer: RolloutBuffer) -> Iterator[None]:
    """In this block the policy acts under the environment's masks, which the buffer keeps.

    Nothing happens where the policy takes no masks or the environment has none.

    Raises:
        InputError: a buffer without room for masks.
    """
    if not isinstance(policy, MaskedPolicy) or not is_masked(env):
        yield
        return
    if not isinstance(buffer, TensorRolloutBuffer):
        raise InputError(f"rollout_buffer_class: {type(buffer).__name__} keeps no masks; allowed: TensorRolloutBuffer")

    def hook(policy: Any, _: Any) -> None:
        policy.mask = torch.as_tensor(_action_masks(env), device=buffer.device)
        buffer.masks.append(policy.mask)

    handle = policy.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        policy.mask = None


def is_masked(env: VecEnv) -> bool:
    """Whether the environment says which actions are allowed."""
    return env.episodes.masked if isinstance(env, SB3VecEnv) else env.has_attr("action_masks")


def _action_masks(env: VecEnv) -> Tensor | np.ndarray:
    """The actions allowed now; ``(n, actions)`` bool."""
    if isinstance(env, SB3VecEnv):
        return env.episodes.action_mask().flatten(0, -2)
    return np.stack(env.env_method("action_masks"))
