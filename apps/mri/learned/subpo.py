"""SubPO on the acquisition world: a policy paid by marginal information or image quality, used as a line chooser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from apps.mri.learned.products import training_set
from apps.mri.problem import MixtureSettings, Problem, prior_of
from core.diffusion.exact_posterior import ExactPosterior
from core.diffusion.mixture import GaussianMixturePrior
from core.rl import LearnedPolicy, ResumeCallback, SubPO
from core.simulation import SB3VecEnv, tree
from core.study import Config, Context, Product
from simulators.mri.world import MRILineState, MRILineWorld

_UPDATES = 5  # between two reports of progress


class SubPOSettings(Config):
    """Of the world and of the learner (Prajapat et al. 2024, "Submodular reinforcement learning")."""

    updates: int = Field(default=100, ge=1)
    """Gradient steps, one a roll-out."""
    scans: int = Field(default=64, ge=2)
    """Scans at once."""
    particles: int = Field(default=8, ge=2)
    """Exact posterior samples of a scan."""
    belief: float = Field(default=1.0, gt=0)
    """Belief width of a real component."""
    reward: Literal["info_gain", "ssim_gain", "psnr_gain"] = "info_gain"
    """What a line is worth: information under the prior's Gaussian fit (submodular), or image quality."""
    credit: Literal["return", "one_step"] = "return"
    """What an action is credited with: all gains from it on, or its own."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Step size of Adam."""


class TrainedSubPO(Product):
    """A policy trained on the training images, with exact posterior samples of the mixture prior."""

    problem: Problem
    prior: MixtureSettings
    settings: SubPOSettings
    limit: int | None
    seed: int

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.problem.name} SubPO"

    def make(self, directory: Path, context: Context) -> None:
        """Train and write ``policy.*``; a kill costs at most a minute."""
        images, _ = training_set(self.problem, self.limit, context)
        world, s = self.world(context, images), self.settings
        env = SB3VecEnv(world, s.scans, seed=self.seed, device=context.device)
        steps = self.problem.budget - 1
        learner = SubPO(
            "MlpPolicy",
            env,
            n_steps=steps,
            learning_rate=s.learning_rate,
            credit=s.credit,
            seed=self.seed,
            device=context.device,
        )
        state = context.checkpoint / "state.safetensors"
        if state.exists():
            learner.restore_state(state)
        total = s.updates * steps * s.scans
        while learner.num_timesteps < total:
            part = min(total - learner.num_timesteps, _UPDATES * steps * s.scans)
            learner.learn(part, callback=ResumeCallback(state, 60.0), reset_num_timesteps=False)
            context.progress(learner.num_timesteps / total, "SubPO")
        learner.save(directory / "policy")

    def world(self, context: Context, images: Tensor | None = None) -> MRILineWorld:
        """The acquisition world of the problem."""
        prior = prior_of(self.prior, self.problem.images, context)
        assert isinstance(prior, GaussianMixturePrior)
        operator = self.problem.measurement(prior.shape)
        s = self.settings
        return MRILineWorld(
            ExactPosterior(prior, operator),
            budget=self.problem.budget,
            particles=s.particles,
            belief=s.belief,
            reward=s.reward,
            images=images,
        )

    def lines(self, context: Context) -> Callable[[Sequence[torch.Generator]], LineChooser]:
        """The trained policy, trained if need be; it takes one generator a subject."""
        model = SubPO.load(context.product(self) / "policy", device=context.device)
        world = self.world(context)
        policy = LearnedPolicy(model, world)
        return lambda luck: LineChooser(policy, world, luck)


class LineChooser:
    """The next line from what was measured: particles of the exact posterior, shown to the policy as in its training.

    Args:
        policy: trained on ``world``.
        world: the acquisition world.
        luck: one generator a subject, so that a batch equals its single subjects.
    """

    def __init__(self, policy: LearnedPolicy, world: MRILineWorld, luck: Sequence[torch.Generator]) -> None:
        self.policy, self.world, self._luck = policy, world, luck

    def __call__(self, samples: Tensor, mask: Tensor) -> Tensor:
        """Lines (S,) for samples (S, W, R) under masks (S, W)."""
        noise = tree.map_tensors(lambda *parts: torch.cat(parts), *(self.world.noise(1, g) for g in self._luck))
        particles = self.world.posterior.sample(samples, mask, noise)
        # The policy sees what the world shows; of the target, which nobody knows here, the world shows nothing.
        blank = torch.zeros_like(particles[:, 0])
        state = MRILineState(blank, samples, mask, particles, None)
        return self.policy(self.world.observe(state), state).long()
