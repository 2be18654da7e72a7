"""Greedy policy gradient: a network that looks at the reconstruction so far and chooses the next line."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import one_hot

from apps.mri.classical import Reconstruction, peak
from apps.mri.learned.loupe import center_block
from apps.mri.learned.operator_network import OperatorNetwork
from apps.mri.learned.unet import Progress, noisy
from apps.mri.methods import Sequential
from core.errors import InputError
from core.rl import TrainingDiverged
from core.seeds import stream
from core.study import Config
from simulators.mri.operators import Operator
from simulators.mri.quality import magnitude, ssim


class PolicyGradientSettings(Config):
    """Settings of the policy and of its training."""

    budget: int = Field(ge=1)
    """Actions taken in all, with the first ones."""
    center_lines: int = Field(default=1, ge=0)
    """Actions around DC that are taken before the policy chooses."""
    samples: int = Field(default=8, ge=2)
    """Actions tried in each state, each the baseline of the others."""
    channels: int = Field(default=16, ge=1)
    """Channels of the first convolution; each further one has twice as many."""
    levels: int = Field(default=2, ge=1, le=8)
    """Convolutions, each followed by a reduction to half the resolution."""
    hidden: int = Field(default=128, ge=1)
    """Width of the layer between convolutions and lines."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the training images."""
    batch: int = Field(default=16, ge=1)
    """Images a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size of Adam."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the noise added to each real component of the training samples."""


class LinePolicy(OperatorNetwork):
    """The probability of each action not yet taken, from the magnitude of the current reconstruction.

    Args:
        operator: the measurement.
        settings: of the network.

    Raises:
        InputError: the budget leaves nothing to choose, the image is too small for so many levels, or DC lines are
            asked of an operator that has none.
    """

    settings_class = PolicyGradientSettings
    start: Tensor

    def __init__(self, operator: Operator, settings: PolicyGradientSettings) -> None:
        super().__init__(operator, settings)
        if not settings.center_lines < settings.budget <= operator.actions:
            raise InputError(
                f"budget {settings.budget}: must be more than the first {settings.center_lines} and at most all "
                f"{operator.actions} actions"
            )
        _, height, width = operator.shape
        pooled = (height >> settings.levels) * (width >> settings.levels)
        if not pooled:
            raise InputError(f"levels {settings.levels}: an image of {height} x {width} is too small for that")
        self.register_buffer("start", center_block(operator, settings.center_lines), persistent=False)
        layers: list[nn.Module] = []
        before = 1
        for level in range(settings.levels):
            after = settings.channels << level
            # Without the norm, what all images share drowns their differences: the policy takes one line for all.
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.InstanceNorm2d(after),
                nn.LeakyReLU(0.2),
                nn.AvgPool2d(2),
            ]
            before = after
        layers += [nn.Flatten(), nn.Linear(before * pooled, settings.hidden), nn.LeakyReLU(0.2)]
        self.network = nn.Sequential(*layers, nn.Linear(settings.hidden, operator.actions))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities (N, A) from reconstructions (N, C, H, W) and masks (N, A); taken actions have -inf."""
        logits = self.network(magnitude(images / peak(images)).reshape(-1, 1, *self.operator.shape[1:]))
        return logits.masked_fill(mask, -math.inf).log_softmax(-1)

    @torch.no_grad()
    def next_line(self, images: Tensor, mask: Tensor) -> Tensor:
        """The likeliest action (N,) not yet taken."""
        return self(images, mask).argmax(-1)

    def chooser(self, reconstruct: Reconstruction) -> Sequential:
        """The policy as a chooser of lines, on top of the reconstruction that it was trained with."""

        def choose(samples: Tensor, mask: Tensor) -> Tensor:
            with torch.no_grad():
                return self.next_line(reconstruct(samples, mask), mask)

        return Sequential(choose, self.start, self.settings.budget)


def train(
    operator: Operator,
    reconstruct: Reconstruction,
    images: Tensor,
    settings: PolicyGradientSettings,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> LinePolicy:
    """Train a policy as Bakker, van Hoof and Welling (2020, "Experimental design for MRI by greedy policy search").

    In every state q actions are drawn, with replacement; each earns the SSIM of its reconstruction less that of the
    state, and the first of them leads to the next state. The reconstruction stays as it is. A function of its
    arguments, on the device of the images.

    Args:
        operator: the measurement.
        reconstruct: from samples and masks to images, such as a trained U-Net.
        images: training images (N, C, H, W).
        settings: of policy and training.
        seed: of first weights, order, actions and noise.
        progress: told once an epoch.

    Raises:
        InputError: see ``LinePolicy``.
        TrainingDiverged: a probability or the mean gain is not finite.
    """
    policy = LinePolicy.drawn(operator, settings, seed).to(images.device)
    generator = torch.Generator(images.device).manual_seed(stream(seed, "policy gradient training"))
    optimiser = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    for epoch in range(settings.epochs):
        gained = torch.zeros((), device=images.device)
        for part in torch.randperm(len(images), generator=generator, device=images.device).split(settings.batch):
            optimiser.zero_grad()
            gained += _episode(policy, reconstruct, images[part], generator) * len(part)
            optimiser.step()
        mean = gained.item() / len(images)
        if not math.isfinite(mean):
            raise TrainingDiverged(f"epoch {epoch + 1}: the mean gain of the policy is {mean}")
        if progress is not None:
            progress((epoch + 1) / settings.epochs, f"SSIM gain {mean:.4f}")
    return policy.eval()


def advantages(rewards: Tensor) -> Tensor:
    """Rewards (N, q) less their mean over the q actions tried in the same state."""
    return rewards - rewards.mean(-1, keepdim=True)


def surrogate(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """A scalar whose gradient is an unbiased estimate of that of minus the expected reward, averaged over states.

    The mean of all q rewards as baseline needs the factor 1 / (q - 1) (Kool, van Hoof and Welling 2019, "Buy 4
    REINFORCE samples, get a baseline for free!").

    Args:
        log_probs: of the actions tried (N, q).
        rewards: of them (N, q).
    """
    return -(advantages(rewards) * log_probs).sum(-1).mean() / (log_probs.shape[-1] - 1)


def _episode(policy: LinePolicy, reconstruct: Reconstruction, target: Tensor, generator: torch.Generator) -> Tensor:
    """Add the gradients of all steps of one batch; the mean gain of SSIM from the first state to the last."""
    operator, tries = policy.operator, policy.settings.samples
    samples = noisy(operator.forward(target), policy.settings.noise, generator)
    mask = policy.start.expand(len(target), -1)
    many_samples, truth = samples.repeat_interleave(tries, dim=0), magnitude(target)
    with torch.no_grad():
        image = reconstruct(samples, mask)
        first = quality = ssim(truth, magnitude(image))
    for _ in range(policy.settings.budget - policy.settings.center_lines):
        log_probs = policy(image, mask)
        # Drawing from such probabilities would end the process on a GPU.
        if bool(log_probs.isnan().any()):
            raise TrainingDiverged("the probabilities of the policy are not finite")
        with torch.no_grad():
            lines = torch.multinomial(log_probs.exp(), tries, replacement=True, generator=generator)
            tried = mask[:, None] | one_hot(lines, operator.actions).bool()
            images = reconstruct(many_samples, tried.flatten(0, 1))
            scores = ssim(truth[:, None], magnitude(images).unflatten(0, (-1, tries)))
        surrogate(log_probs.gather(1, lines), scores - quality[:, None]).backward()
        mask, image, quality = tried[:, 0], images.unflatten(0, (-1, tries))[:, 0], scores[:, 0]
    return (quality - first).mean()
