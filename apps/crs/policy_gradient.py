"""REINFORCE on whole episodes of a batched world, after learning from a demonstrator.

The score-function gradient of Williams (1992), sum_t (G_t - b_t) grad log pi(a_t | s_t) with the discounted return to
go G_t, a mean over episodes. Lei et al. (2020, EAR, WSDM) begin with the cross-entropy of a rule's decisions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from apps.crs.embedding import Progress
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.rl import TrainingDiverged
from core.rl.checkpoint import load_optimizer, optimizer_tensors
from core.seeds import stream
from core.simulation import tree
from core.simulation.simulator import Simulator
from core.study import Config

Choose = Callable[[Tensor, Tensor, Any], Tensor]
"""Actions ``(n,)`` for observations ``(n, F)``, masks ``(n, A)`` and states."""
STEP, RUN, WEIGHT = "step", "run", "weight."
"""Names in a checkpoint: steps done, a number that tells which training it belongs to, and what begins a weight's."""


class PolicyGradientSettings(Config):
    """How a policy is trained."""

    demonstrations: int = Field(default=1_000, ge=0)
    """Episodes of the demonstrator; 0 leaves the pretraining out."""
    pretraining: int = Field(default=1_500, ge=0)
    """Steps on its decisions."""
    pretraining_batch: int = Field(default=256, ge=1)
    """Decisions of such a step."""
    pretraining_rate: float = Field(default=3e-3, gt=0)
    """Of Adam, in the pretraining."""
    updates: int = Field(default=700, ge=0)
    """Steps of REINFORCE."""
    episodes: int = Field(default=128, ge=1)
    """Played for each of them."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam, in REINFORCE."""
    discount: float = Field(default=0.7, gt=0, le=1)
    """Per step of an episode."""
    baseline: Literal["none", "turn"] = "turn"
    """Taken from the returns: nothing, or their mean at the same step of the episodes."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """To which a gradient is cut."""


@dataclass(frozen=True)
class Steps:
    """n steps of some episodes.

    Attributes:
        seen: ``(n, F)`` observations.
        mask: ``(n, A)`` bool, what was allowed.
        action: ``(n,)`` int64.
        turn: ``(n,)`` int64, place in the episode from 0.
        returns: ``(n,)`` discounted sum of the rewards from this step on.
    """

    seen: Tensor
    mask: Tensor
    action: Tensor
    turn: Tensor
    returns: Tensor


@torch.no_grad()
def play(
    world: Simulator, choose: Choose, episodes: int, horizon: int, generator: torch.Generator, discount: float = 1.0
) -> Steps:
    """Play episodes until the world or the horizon ends them.

    Args:
        world: of Discrete actions and observations of one vector.
        choose: who acts.
        episodes: B.
        horizon: most steps of an episode.
        generator: of the world's randomness, on its device.
        discount: per step.
    """
    actions = int(world.action_space.n)  # type: ignore[attr-defined]
    state = world.reset(episodes, generator)
    alive = torch.arange(episodes, device=generator.device)
    rewards, turns = torch.zeros(horizon, episodes, device=generator.device), []
    for t in range(horizon):
        noise = tree.take(world.noise(episodes, generator), alive)
        seen, mask = world.observe(state, noise), world.action_mask(state)
        assert isinstance(seen, Tensor)
        if mask is None:
            mask = torch.ones(len(seen), actions, dtype=torch.bool, device=seen.device)
        action = choose(seen, mask, state)
        turns.append((seen, mask, action, torch.full_like(alive, t), alive))
        step = world.step(state, action, noise)
        rewards[t, alive] = step.reward.to(rewards)
        going = ~step.terminated
        state, alive = tree.take(step.state, going), alive[going]
        if not len(alive):
            break
    seen, mask, action, turn, row = (torch.cat(parts) for parts in zip(*turns, strict=True))
    return Steps(seen, mask, action, turn, returns_to_go(rewards, discount)[turn, row])


def returns_to_go(rewards: Tensor, discount: float) -> Tensor:
    """``(T, B)`` G_t = r_t + discount G_{t+1}."""
    returns, total = torch.empty_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        total = rewards[t] + discount * total
        returns[t] = total
    return returns


def log_probabilities(network: nn.Module, seen: Tensor, mask: Tensor) -> Tensor:
    """``(n, A)`` of the policy, -inf for what is not allowed."""
    return network(seen).masked_fill(~mask, -torch.inf).log_softmax(1)


def imitation_loss(network: nn.Module, steps: Steps) -> Tensor:
    """Mean cross-entropy of the actions taken."""
    found = log_probabilities(network, steps.seen, steps.mask)
    return nn.functional.nll_loss(found, steps.action)


def reinforce_loss(network: nn.Module, steps: Steps, episodes: int, baseline: Literal["none", "turn"]) -> Tensor:
    """-1/B sum over steps of (G - b) log pi(a | s), whose gradient is REINFORCE's, negated."""
    credit = steps.returns
    if baseline == "turn":
        count = torch.bincount(steps.turn).to(credit)
        mean = torch.zeros_like(count).index_add_(0, steps.turn, credit) / count.clamp(min=1)
        credit = credit - mean[steps.turn]
    found = log_probabilities(network, steps.seen, steps.mask).gather(1, steps.action.unsqueeze(1)).squeeze(1)
    return -(credit * found).sum() / episodes


class PolicyGradient:
    """The training of one network: first the pretraining steps, then those of REINFORCE.

    All that is random in a step follows from the seed and its number. Dropout acts in the pretraining alone: the
    gradient of REINFORCE must be that of the policy that has acted.

    Args:
        world: to be learnt, with the rewards to learn from; ends its episodes itself or by ``horizon``.
        network: ``(n, F)`` to logits ``(n, A)``.
        settings: of the training.
        seed: of everything.
        horizon: most steps of an episode.
        demonstrator: whose decisions are imitated first; none leaves that out.
        world_device: where the world is.
    """

    def __init__(
        self,
        world: Simulator,
        network: nn.Module,
        settings: PolicyGradientSettings,
        seed: int,
        *,
        horizon: int,
        demonstrator: Choose | None = None,
        world_device: torch.device | str = "cpu",
    ) -> None:
        self.world, self.network, self.settings, self.seed = world, network, settings, seed
        self.horizon, self.demonstrator, self.world_device = horizon, demonstrator, torch.device(world_device)
        self.device = next(network.parameters()).device
        imitates = demonstrator is not None and settings.demonstrations > 0
        self.pretraining = settings.pretraining if imitates else 0
        self.steps = self.pretraining + settings.updates

    @functools.cached_property
    def decisions(self) -> Steps:
        """The demonstrator's."""
        assert self.demonstrator is not None
        episodes, generator = self.settings.demonstrations, self._generator("demonstrations")
        return self._moved(play(self.world, self.demonstrator, episodes, self.horizon, generator))

    def loss(self, step: int) -> Tensor:
        """Of a step from 0 on."""
        s = self.settings
        if step < self.pretraining:
            drawn = torch.Generator().manual_seed(stream(self.seed, f"decisions {step}"))
            rows = torch.randint(len(self.decisions.action), (s.pretraining_batch,), generator=drawn).to(self.device)
            self.network.train()
            with _seeded(stream(self.seed, f"dropout {step}"), self.device):
                return imitation_loss(self.network, tree.take(self.decisions, rows))
        self.network.eval()
        generator = self._generator(f"policy gradient {step}")
        played = play(self.world, self._sampler(generator), s.episodes, self.horizon, generator, s.discount)
        return reinforce_loss(self.network, self._moved(played), s.episodes, s.baseline)

    def train(self, *, run: str = "", checkpoint: Path | None = None, progress: Progress | None = None) -> None:
        """Take all steps.

        Args:
            run: a text that tells this training from others whose checkpoint it might be given.
            checkpoint: a file from which an interrupted training goes on, bit for bit, and which it keeps up to date.
            progress: told the share done and a message.

        Raises:
            InputError: the checkpoint is damaged or that of another training.
            TrainingDiverged: a loss or gradient is not finite; the network has the last good weights.
        """
        s, kept, weights = self.settings, Checkpoint(checkpoint), dict(self.network.named_parameters())
        number = stream(self.seed, f"policy gradient {s.hash} {run}")
        optimizer = torch.optim.Adam(weights.values(), lr=s.pretraining_rate)
        done = self._restored(kept, weights, optimizer, number)
        good = _copied(weights)
        for step in range(done, self.steps):
            for group in optimizer.param_groups:
                group["lr"] = s.pretraining_rate if step < self.pretraining else s.learning_rate
            optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(weights.values(), s.max_grad_norm)
            self._check(loss.detach() + norm, good, step)
            good = _copied(weights)
            # Before the step: what is kept has proved to be good.
            if kept.due:
                named = {f"{WEIGHT}{name}": x for name, x in weights.items()}
                counts = {STEP: torch.tensor(step), RUN: torch.tensor(number)}
                kept.save({**counts, **named, **optimizer_tensors(optimizer)})
            optimizer.step()
            if progress is not None:
                progress((step + 1) / self.steps, f"step {step + 1} of {self.steps}: loss {float(loss.detach()):.4f}")
        self._check(nn.utils.parameters_to_vector(weights.values()).detach().sum(), good, self.steps)
        self.network.eval()

    def _check(self, number: Tensor, good: dict[str, Tensor], step: int) -> None:
        """Go back to the good weights if the number is not finite."""
        if not bool(torch.isfinite(number)):
            self.network.load_state_dict(good, strict=False)
            raise TrainingDiverged(
                f"policy gradient: a loss, gradient or weight is not finite after {step} of {self.steps} steps; last "
                "good weights restored"
            )

    def _restored(
        self, kept: Checkpoint, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, number: int
    ) -> int:
        """Steps done."""
        if (saved := kept.load()) is None:
            return 0
        if RUN not in saved or int(saved[RUN]) != number:
            raise InputError(
                f"{kept.path}: is the state of another training; allowed: one of the same world, settings and seed, "
                "or no file"
            )
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[f"{WEIGHT}{name}"])
        load_optimizer(optimizer, saved)
        return int(saved[STEP])

    def _sampler(self, generator: torch.Generator) -> Choose:
        def sample(seen: Tensor, mask: Tensor, state: Any) -> Tensor:
            found = log_probabilities(self.network, seen.to(self.device), mask.to(self.device)).exp()
            # Numbers that are not finite show in the loss then, whatever is drawn.
            found = torch.where(torch.isfinite(found).all(1, keepdim=True), found, mask.to(found))
            return torch.multinomial(found.to(self.world_device), 1, generator=generator).squeeze(1)

        return sample

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator(self.world_device).manual_seed(stream(self.seed, purpose))

    def _moved(self, steps: Steps) -> Steps:
        return tree.map_tensors(lambda x: x.to(self.device), steps)


def _copied(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """In this block PyTorch's own generators, from which dropout draws, begin with the seed."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield
