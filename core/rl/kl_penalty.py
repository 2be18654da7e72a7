"""PPO with an adaptive penalty on the divergence from the old policy, as RLlib's PPO has it."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from stable_baselines3.common.distributions import kl_divergence
from torch import Tensor

from core.errors import InputError
from core.rl.masks import masking
from core.rl.ppo import PPO, Minibatch


class KLPenaltyPPO(PPO):
    """The clipped objective plus ``kl_coef`` times KL(old || new), and squared value errors that are capped.

    After every ``train`` the coefficient is multiplied by 1.5 if the mean divergence exceeded twice ``kl_target`` and
    by 0.5 if it stayed below half of it (Schulman et al. 2017, section 4, with RLlib's factors).

    Args:
        policy: as for ``PPO``, like all that is not named here.
        env: as for ``PPO``.
        kl_coef: initial coefficient.
        kl_target: divergence aimed at in one ``train``.
        vf_loss_clip: cap of the squared error of one value.
        **options: as for ``PPO``.

    Raises:
        InputError: a negative coefficient, or a target or cap that is not positive.
    """

    saved_arguments: ClassVar[tuple[str, ...]] = (*PPO.saved_arguments, "kl_coef", "kl_target", "vf_loss_clip")
    resumed_attributes: ClassVar[tuple[str, ...]] = (*PPO.resumed_attributes, "kl_coef")

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        kl_coef: float = 0.2,
        kl_target: float = 0.01,
        vf_loss_clip: float = 50.0,
        **options: Any,
    ) -> None:
        if not kl_coef >= 0:
            raise InputError(f"kl_coef: {kl_coef}; allowed: at least 0")
        for name, value in (("kl_target", kl_target), ("vf_loss_clip", vf_loss_clip)):
            if not value > 0:
                raise InputError(f"{name}: {value}; allowed: greater than 0")
        self.kl_coef, self.kl_target, self.vf_loss_clip = kl_coef, kl_target, vf_loss_clip
        super().__init__(policy, env, **options)

    def policy_loss(self, batch: Minibatch) -> Tensor:
        """The clipped objective and the penalty, with the exact divergence of the action distributions."""
        with torch.no_grad(), masking(self._old_policy, batch.mask):
            old = self._old_policy.get_distribution(batch.samples.observations)
        # The policy keeps the distribution that it evaluated the minibatch's actions with.
        divergence = kl_divergence(old, self.policy.action_dist)
        divergence = (divergence.sum(1) if divergence.dim() > 1 else divergence).mean()
        self._divergences.append(divergence.detach())
        return super().policy_loss(batch) + self.kl_coef * divergence

    def value_loss(self, batch: Minibatch) -> Tensor:
        """Mean of the capped squared errors against the TD(lambda) returns."""
        return (batch.samples.returns - batch.values).square().clamp(max=self.vf_loss_clip).mean()

    def train(self) -> None:
        """``PPO.train``, then the adaptation of the coefficient."""
        self._old_policy = copy.deepcopy(self.policy)
        self._divergences: list[Tensor] = []
        super().train()
        mean = float(torch.stack(self._divergences).mean())
        self.logger.record("train/kl", mean)
        self.logger.record("train/kl_coef", self.kl_coef)
        if mean > 2 * self.kl_target:
            self.kl_coef *= 1.5
        elif mean < 0.5 * self.kl_target:
            self.kl_coef *= 0.5

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_old_policy", "_divergences"]
