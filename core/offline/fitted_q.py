"""Fitted Q evaluation: the action values of a given policy, from a log (Le, Voloshin and Yue 2019, algorithm 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from core.bandits.row_checks import refuse_outside, refuse_rows
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.nn.adam import minimise
from core.offline.dataset import OfflineDataset, TransitionBatch
from core.offline.mlp import evaluated, mlp
from core.rl.algorithm import TrainingDiverged
from core.seeds import stream

_STEPS_DRAWN = 256
_CONVERGED, _UNBOUNDED = 1e-10, 1e12


class FittedQEvaluation:
    """Q <- argmin E (Q(s, a) - r - gamma E_{a' ~ pi} Q'(s', a'))^2, where Q' is the Q before; 0 beyond a termination.

    With hidden layers a network follows the gradient, and Q' an average of its past weights. Without, Q(s, a) = w_a x
    with x = (s, 1): each iteration is the exact least-squares solution, and observations that are one-hot codes of
    states make it tabular. That iteration need not converge where the log does not cover the policy.

    Args:
        gamma: discount factor.
        hidden: sizes of the hidden layers; none for the exact linear iteration.
        gradient_steps: of a network.
        batch: transitions a step.
        learning_rate: of Adam.
        tau: share of the network that its average takes over before each step (Polyak).
        iterations: at most so many exact ones; they stop where nothing changes by more than 1e-10.
        ridge: penalty of the exact solution, so that it is unique.
        seed: of the initial weights and batches.
        device: where to compute.

    Raises:
        InputError: a number out of its range.
    """

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        hidden: Sequence[int] = (64, 64),
        gradient_steps: int = 5000,
        batch: int = 256,
        learning_rate: float = 1e-3,
        tau: float = 0.005,
        iterations: int = 1000,
        ridge: float = 1e-6,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0.0 <= gamma <= 1.0 or min(gradient_steps, batch, iterations) < 1 or not 0.0 < tau <= 1.0 or ridge <= 0:
            raise InputError(
                f"gamma = {gamma}, gradient_steps = {gradient_steps}, batch = {batch}, iterations = {iterations}, "
                f"tau = {tau}, ridge = {ridge}; allowed: gamma in [0, 1], numbers of at least 1, tau in (0, 1], ridge "
                "above 0"
            )
        self.gamma, self.hidden, self.gradient_steps, self.batch = gamma, tuple(hidden), gradient_steps, batch
        self.learning_rate, self.tau, self.iterations, self.ridge, self.seed = (
            learning_rate,
            tau,
            iterations,
            ridge,
            seed,
        )
        self.device = torch.device(device)
        self.network: nn.Sequential | None = None
        self.weights: Tensor | None = None

    def fit(
        self,
        dataset: OfflineDataset,
        target: Callable[[Tensor], Tensor] | Tensor,
        *,
        checkpoint: Path | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> FittedQEvaluation:
        """Fit Q of the policy ``target``, from the start or from ``checkpoint``.

        Args:
            dataset: logged transitions of Discrete actions; evaluate on other episodes.
            target: ``(N, do) -> (N, A)`` probabilities of the policy, or these of the dataset's next observations.
            checkpoint: file of a network's training, which then goes on bit for bit on the CPU.
            progress: told the share done and a message.

        Raises:
            InputError: continuous actions, or probabilities of a wrong shape or that do not sum to 1.
            TrainingDiverged: the values grew beyond all bounds.
        """
        dataset = dataset.to(self.device)
        one = dataset.n_step(1, self.gamma)
        following = target if isinstance(target, Tensor) else target(one.next_observations)
        shape = (len(dataset), dataset.choices)
        if following.shape != shape:
            raise InputError(f"target: has shape {tuple(following.shape)}; must be {shape}")
        following = following.to(self.device)
        refuse_outside("target", following, 0.0, 1.0)
        total = torch.where(one.terminated, 1.0, following.double().sum(1))
        refuse_rows("target: sum of probabilities", total, (total - 1).abs() < 1e-3, "1")
        # What a bootstrap takes of each next action: nothing beyond a termination.
        following = following.to(one.rewards) * (one.discounts * ~one.terminated)[:, None]
        self.network = self.weights = None
        if self.hidden:
            self._fit_network(one, following, dataset.choices, checkpoint, progress)
        else:
            self.weights = self._solved(one, following, dataset.choices)
        return self

    def q_values(self, observations: Tensor) -> Tensor:
        """Action values ``(N, A)``.

        Raises:
            InputError: nothing was fitted.
        """
        observations = observations.to(self.device)
        if self.weights is not None:
            return (_with_one(observations.double()) @ self.weights).to(observations)
        if self.network is None:
            raise InputError("FittedQEvaluation: call fit first")
        return evaluated(self.network, observations)

    def _solved(self, one: TransitionBatch, following: Tensor, choices: int) -> Tensor:
        x, after = _with_one(one.observations.double()), _with_one(one.next_observations.double())
        following, rewards = following.double(), one.rewards.double()
        rows = [one.actions == action for action in range(choices)]
        penalty = self.ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        grams = torch.linalg.cholesky(torch.stack([x[r].T @ x[r] + penalty for r in rows]))
        weights = x.new_zeros(x.shape[1], choices)
        for _ in range(self.iterations):
            aim = rewards + (following * (after @ weights)).sum(1)
            moments = torch.stack([x[r].T @ aim[r] for r in rows])
            updated = torch.cholesky_solve(moments[:, :, None], grams)[:, :, 0].T
            change = float((updated - weights).abs().max())
            weights = updated
            if not change < _UNBOUNDED:
                raise TrainingDiverged(f"fitted Q evaluation: the values changed by {change:.3g} in one iteration")
            if change < _CONVERGED:
                break
        return weights

    def _fit_network(
        self,
        one: TransitionBatch,
        following: Tensor,
        choices: int,
        checkpoint: Path | None,
        progress: Callable[[float, str], None] | None,
    ) -> None:
        sizes = (one.observations.shape[1], *self.hidden, choices)
        network, average = (mlp(sizes, self.seed).to(self.device) for _ in range(2))
        average.requires_grad_(False)
        self.network = network
        seen, after, rewards, following = (
            x.float() for x in (one.observations, one.next_observations, one.rewards, following)
        )
        rows, block, total = torch.empty(0), -1, torch.zeros((), device=self.device)
        good = {name: x.clone() for name, x in network.state_dict().items()}

        def look(step: int) -> None:
            """Refuse losses and weights that are not finite, waiting for the device once a block of steps."""
            nonlocal good
            weights = nn.utils.parameters_to_vector(network.parameters()).detach()
            if not bool(torch.isfinite(total + weights.sum())):
                network.load_state_dict(good)
                raise TrainingDiverged(f"fitted Q evaluation: not finite by step {step}; last good weights restored")
            good = {name: x.clone() for name, x in network.state_dict().items()}

        def loss(step: int) -> Tensor:
            nonlocal rows, block, total
            if step // _STEPS_DRAWN != block:
                look(step)
                block = step // _STEPS_DRAWN
                generator = torch.Generator().manual_seed(stream(self.seed, f"batches {block}"))
                rows = torch.randint(len(one), (_STEPS_DRAWN, self.batch), generator=generator).to(self.device)
            at = rows[step % _STEPS_DRAWN]
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), self.tau)
                aim = rewards[at] + (following[at] * average(after[at])).sum(1)
            taken = network(seen[at]).gather(1, one.actions[at, None])[:, 0]
            value = nn.functional.mse_loss(taken, aim)
            total = total + value.detach()
            return value

        minimise(
            dict(network.named_parameters()),
            loss,
            self.gradient_steps,
            learning_rate=self.learning_rate,
            buffers=dict(average.named_parameters()),
            checkpoint=Checkpoint(checkpoint),
            progress=progress,
        )
        look(self.gradient_steps)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)
