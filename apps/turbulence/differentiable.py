"""Training of the agents' policy by the gradient of the spectrum's error, taken through the solver."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from core import files
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.rl import PPO, TrainingDiverged
from core.rl.checkpoint import load_parameters, parameters
from core.rl.training import read_curve
from core.seeds import stream
from core.simulation import SB3VecEnv, tree
from core.study import Config
from simulators.turbulence.agents.rewards import SMALLEST
from simulators.turbulence.agents.world import SEEN, AgentsState, ClosureAgents


class GradientSettings(Config):
    """Gradient descent through the solver over short windows: the alternative to reinforcement learning."""

    kind: Literal["gradient"] = "gradient"
    """The solver is differentiated; no reward is needed."""
    solver_steps: int = Field(default=400_000, ge=1)
    """Budget, in solver steps of one flow; a step forward and a step backward each count as one."""
    window: int = Field(default=10, ge=1)
    """Actions of a window, between two updates."""
    n_envs: int = Field(default=8, ge=1)
    """Flows at once, over which the spectrum is averaged."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size of Adam."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest norm of a gradient; longer ones are shortened."""
    net: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    """Widths of the hidden layers (tanh)."""

    def updates(self, steps_per_action: int) -> int:
        """How many windows the budget pays for.

        Raises:
            InputError: not even one.
        """
        cost = self.cost(steps_per_action)
        if self.solver_steps < cost:
            raise InputError(f"solver_steps = {self.solver_steps}: one window costs {cost}; must be at least that")
        return self.solver_steps // cost

    def cost(self, steps_per_action: int) -> int:
        """Solver steps of one window, forward and backward."""
        return 2 * self.window * steps_per_action * self.n_envs


@dataclass(frozen=True)
class Window:
    """What came of a few actions.

    Attributes:
        loss: scalar that can be differentiated; None if every copy failed at once.
        state: of the copies that did not fail, at the end.
        alive: ``(A,)`` their numbers in the batch.
    """

    loss: Tensor | None
    state: AgentsState
    alive: Tensor


def spectrum_loss(spectrum: Tensor, reference: Tensor) -> Tensor:
    """Sum over k of (log10 Z/Z_ref)^2, Z being the mean over the batch of ``(B, K)`` or ``(B, 2, K)``."""
    mean = spectrum.mean(0).clamp(min=SMALLEST)
    return (mean / reference.to(mean)).log10().square().sum()


def unrolled(world: ClosureAgents, policy: Callable[[Tensor], Tensor], state: AgentsState, actions: int) -> Window:
    """Let the agents act so many times, so that the mean ``spectrum_loss`` after their actions can be differentiated.

    Of the way there only the states between two actions are kept; the steps between are done again on the way back.
    A copy that fails leaves the batch in that action: its infinities reach neither the mean nor the gradient.

    Args:
        world: of the agents.
        policy: from observations ``(B, agents, S)`` to coefficients ``(B, agents, 1)``.
        state: of B copies.
        actions: at least 1.
    """
    alive = torch.arange(len(state.clock), device=state.clock.device)
    losses: list[Tensor] = []

    def act(now: AgentsState) -> tuple[AgentsState, Tensor, Tensor]:
        step = world.step(now, policy(world.observe(now)))
        return step.state, step.terminated, step.info["spectrum"]

    while len(alive) and len(losses) < actions:
        following, failed, spectrum = recomputed(act, state, use_reentrant=False, preserve_rng_state=False)
        if bool(failed.any()):
            # Masking is not enough: a gradient of 0 times an infinity on the way back is not a number.
            alive, state = alive[~failed], tree.take(state, ~failed)
            continue
        state = following
        losses.append(spectrum_loss(spectrum, world.reference))
    return Window(torch.stack(losses).mean() if losses else None, state, alive)


def train_through_the_solver(
    world: ClosureAgents,
    settings: GradientSettings,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    curve: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> PPO:
    """Train the mean action of a policy like PPO's by gradients through the solver.

    The flows go on from window to window; one begins afresh when it fails or reaches the world's horizon.

    Args:
        world: the world.
        settings: how.
        seed: of the network and the starts.
        checkpoint: file from which an interrupted training goes on, bit for bit.
        curve: file of the learning curve (JSON lines: solver steps used as ``timesteps``, minus the loss as
            ``return``).
        progress: told the share done and a message.

    Returns:
        A model that is saved, loaded and used as one that PPO trained.

    Raises:
        InputError: a budget below one window, or a damaged checkpoint.
        TrainingDiverged: a gradient is not finite; the model holds its last good parameters.
    """
    cost, total = settings.cost(world.steps_per_action), settings.updates(world.steps_per_action)
    model, env = _model(world, settings, seed)
    generator = env.episodes.generator
    file = Checkpoint(checkpoint)
    with torch.no_grad():
        state = world.reset(settings.n_envs, generator)
    if (held := file.load()) is not None:
        load_parameters(model, held, str(checkpoint))
        kept = {name: tree.like(held[name], x) for name, x in tree.named_tensors(state, "state")}
        state = tree.with_tensors(state, kept, "state")
        generator.set_state(held["generator"])
        model.num_timesteps = int(held["solver_steps"])
    if curve is not None and curve.exists():
        files.write(curve, "".join(f"{json.dumps(x)}\n" for x in read_curve(curve, model.num_timesteps)))

    def record() -> dict[str, Tensor]:
        flows = {name: tree.as_real(x) for name, x in tree.named_tensors(state, "state")}
        done = {"generator": generator.get_state(), "solver_steps": torch.tensor(model.num_timesteps)}
        return {**parameters(model), **flows, **done}

    policy = _mean_action(model, env)
    for update in range(model.num_timesteps // cost, total):
        window = unrolled(world, policy, state, settings.window)
        loss = None if window.loss is None else _descend(model, window.loss)
        state = _continued(world, window, settings.n_envs, generator)
        model.num_timesteps += cost
        model._n_updates = update + 1
        _report(model, loss, (update + 1) / total, curve, progress)
        if file.due:
            file.save(record())
    file.save(record())
    return model


def _model(world: ClosureAgents, settings: GradientSettings, seed: int) -> tuple[PPO, SB3VecEnv]:
    device = world.solver.grid.device
    env = SB3VecEnv(world, settings.n_envs, horizon=world.horizon, device=device, observation_range=(-SEEN, SEEN))
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        n_steps=2,  # no roll-out is collected: the smallest buffer
        batch_size=2 * env.num_envs,
        max_grad_norm=settings.max_grad_norm,
        policy_kwargs={"net_arch": list(settings.net)},
        seed=stream(seed, "training"),
        device=device,
    )
    model.policy.set_training_mode(True)
    return model, env


def _mean_action(model: PPO, env: SB3VecEnv) -> Callable[[Tensor], Tensor]:
    """The mean of the policy's distribution, scaled as ``LearnedPolicy`` does, but open to gradients."""
    policy: Any = model.policy
    observation, action = env.episodes.observation, env.episodes.action

    def coefficients(seen: Tensor) -> Tensor:
        rows: Any = observation.to_view(seen.flatten(0, 1))
        latent = policy.mlp_extractor.forward_actor(policy.extract_features(rows, policy.pi_features_extractor))
        return action.to_domain(policy.action_net(latent).clamp(-1, 1)).unflatten(0, seen.shape[:2])

    return coefficients


def _descend(model: PPO, loss: Tensor) -> float:
    """One step of the optimiser against the gradient, cut to its largest norm; the loss before it."""
    model.policy.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
    if not bool(torch.isfinite(norm)):
        raise TrainingDiverged(
            f"the gradient is not finite after {model.num_timesteps} solver steps; the last good parameters are kept"
        )
    model.policy.optimizer.step()
    return loss.item()


@torch.no_grad()
def _continued(world: ClosureAgents, window: Window, copies: int, generator: torch.Generator) -> AgentsState:
    """The whole batch: copies that failed or reached the horizon begin afresh, the others go on, without history."""
    going = torch.ones_like(window.alive, dtype=torch.bool)
    if world.horizon is not None:
        going = window.state.clock < world.horizon
    # A fixed memory layout: vectorised code may round by layout, and a resumed training must not.
    state = tree.map_tensors(lambda x: x.detach().contiguous(), tree.take(window.state, going))
    if len(state.clock) == copies:
        return state
    fresh, kept = world.reset(copies, generator), window.alive[going]
    return tree.map_tensors(lambda new, old: new.contiguous().index_copy(0, kept, old), fresh, state)


def _report(
    model: PPO, loss: float | None, share: float, curve: Path | None, progress: Callable[[float, str], None] | None
) -> None:
    if curve is not None and loss is not None:
        with curve.open("a") as lines:
            lines.write(json.dumps({"timesteps": model.num_timesteps, "return": -loss}) + "\n")
    if progress is not None:
        progress(share, "every flow failed" if loss is None else f"loss {loss:.4g}")
