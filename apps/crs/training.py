"""Training of a Q-network on dialogues, and the choice of its best weights on dialogues held out of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from pydantic import Field
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor, nn

from apps.crs.embedding import Progress
from apps.crs.evaluation import Cases, evaluate
from apps.crs.metrics import measures
from apps.crs.policies import Policy
from core import files
from core.errors import InputError
from core.rl import DQN
from core.rl.checkpoint import read_tensors
from core.rl.demonstrations import DemonstrationDQN
from core.rl.training import learn
from core.simulation import SB3VecEnv
from core.simulation.simulator import Simulator
from core.study import Config
from simulators.crs.catalogue import Ids

WEIGHTS, LOOKS, STATE = "q_network.safetensors", "training.json", "state.safetensors"


class QLearning(Config):
    """How a Q-network is trained."""

    steps: int = Field(default=36_000, ge=1)
    """Turns of the training dialogues, about six a dialogue."""
    looks: int = Field(default=8, ge=1)
    """How often the policy is judged on the held-out dialogues; the best weights are kept."""
    envs: int = Field(default=64, ge=1)
    """Dialogues at once."""
    updates: int = Field(default=4, ge=1)
    """Gradient steps after a turn of all of them."""
    batch: int = Field(default=128, ge=1)
    """Transitions of a gradient step."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Of Adam, at first."""
    final_learning_rate: float = Field(default=1e-5, gt=0)
    """At last; it falls linearly."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Times the weights is added to the gradient."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the features that is left out of a gradient step; of networks on action sets."""
    memory: int = Field(default=40_000, ge=1)
    """Transitions that are remembered."""
    learning_starts: int = Field(default=512, ge=0)
    """Turns before the first gradient step."""
    gamma: float = Field(default=0.999, gt=0, le=1)
    """Discount of a turn."""
    n_steps: int = Field(default=3, ge=1)
    """Turns of a return before it is bootstrapped."""
    tau: float = Field(default=0.01, gt=0, le=1)
    """Share by which the target network follows in each gradient step."""
    explore: tuple[float, float] = (0.9, 0.1)
    """Probability of a random allowed action, at first and at last."""
    explore_share: float = Field(default=0.4, gt=0, le=1)
    """Share of the training in which it falls."""
    hidden: tuple[int, ...] = (100,)
    """Widths of the hidden layers."""

    def options(self) -> dict[str, Any]:
        """Arguments of ``core.rl.DQN``."""
        return {
            "learning_rate": LinearSchedule(self.learning_rate, self.final_learning_rate, 1.0),
            "buffer_size": self.memory,
            "learning_starts": self.learning_starts,
            "batch_size": self.batch,
            "gamma": self.gamma,
            "n_steps": self.n_steps,
            "tau": self.tau,
            "target_update_interval": 0,
            "train_freq": 1,
            "gradient_steps": self.updates,
            "double": True,
            "exploration_initial_eps": self.explore[0],
            "exploration_final_eps": self.explore[1],
            "exploration_fraction": self.explore_share,
        }


def new_dqn(
    choice: Simulator,
    settings: QLearning,
    seed: int | None,
    *,
    policy: Literal["ActionSetPolicy", "MlpPolicy"],
    device: str,
    **further: Any,
) -> DemonstrationDQN:
    """A learner on dialogues of ``choice``, plain unless somebody demonstrates something.

    A seed restarts the generators of the process; None leaves them alone, for a network whose weights will be read.
    """
    env = SB3VecEnv(choice, settings.envs, scaled=False, device=device)
    kwargs: dict[str, Any] = {"net_arch": list(settings.hidden)}
    kwargs["optimizer_kwargs"] = {"weight_decay": settings.weight_decay}
    if policy == "ActionSetPolicy":
        kwargs["dropout"] = settings.dropout
    return DemonstrationDQN(
        policy, env, policy_kwargs=kwargs, seed=seed, device=device, **settings.options(), **further
    )


def loss_of(played: xr.Dataset) -> float:
    """What the choice of weights and thresholds minimises: AT + T (1 - SR@T)."""
    found = measures(played)
    horizon = played.sizes["turn"]
    return float(found["AT"].mean() + horizon * (1 - (played["rank"].values > 0).mean()))


def split_pairs(pairs: Ids, share: float, seed: int) -> tuple[Ids, Ids]:
    """The pairs in two parts, of which the second has this share.

    Raises:
        InputError: a part is empty.
    """
    order = np.random.default_rng(seed).permutation(len(pairs))
    held = round(share * len(pairs))
    if not 0 < held < len(pairs):
        raise InputError(f"held_out = {share}: leaves {len(pairs) - held} and {held} pairs; needs one in each part")
    return pairs[np.sort(order[held:])], pairs[np.sort(order[:held])]


@dataclass(frozen=True)
class Look:
    """How the policy did on the held-out dialogues.

    Attributes:
        steps: turns of training.
        dialogues: training dialogues.
        loss: ``loss_of``.
        success: SR@T.
        turns: AT.
        earned: mean return.
    """

    steps: int
    dialogues: int
    loss: float
    success: float
    turns: float
    earned: float


class BestOnHeldOut(BaseCallback):
    """Judges the policy at even distances and keeps each set of weights that is the best so far.

    Args:
        policy: acts with the network of the model.
        cases: held-out dialogues.
        every: turns between two looks.
        folder: of the weights and of the looks, which survive a kill.
        batch: dialogues at once.
    """

    def __init__(self, policy: Policy, cases: Cases, every: int, folder: Path, batch: int = 512) -> None:
        super().__init__()
        self.policy, self.cases, self.every, self.folder, self.batch = policy, cases, every, folder, batch
        self.looks: list[Look] = []

    @property
    def best(self) -> Look:
        """The look with the smallest loss, the first of equals."""
        return min(self.looks, key=lambda look: look.loss)

    def weights(self, look: Look) -> Path:
        """File of the weights of a look."""
        return self.folder / f"weights-{look.steps}.safetensors"

    def _on_training_start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / LOOKS
        if record.exists():
            held = [Look(**look) for look in json.loads(record.read_text())]
            # Looks from after the state that training goes on from are taken again.
            self.looks = [look for look in held if look.steps < self.model.num_timesteps]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= (len(self.looks) + 1) * self.every:
            self.look()

    def look(self) -> None:
        """Judge the policy now."""
        played = evaluate(self.policy.world, self.policy, self.cases, batch=self.batch)
        found = {name: float(values.mean()) for name, values in measures(played).items()}
        success = float((played["rank"].values > 0).mean())
        now = Look(
            self.model.num_timesteps, self.model._episode_num, loss_of(played), success, found["AT"], found["return"]
        )
        self.looks.append(now)
        if self.best is now:
            net: nn.Module = self.model.q_net  # type: ignore[attr-defined]
            save_weights(net, self.weights(now))
        files.write_json(self.folder / LOOKS, [vars(look) for look in self.looks])


def train(
    model: DQN,
    policy: Policy,
    cases: Cases,
    directory: Path,
    *,
    steps: int,
    looks: int,
    checkpoint: Path,
    progress: Progress | None = None,
) -> None:
    """Train, and write the best weights and all looks into ``directory``.

    Args:
        model: just constructed.
        policy: acts with ``model.q_net``.
        cases: held-out dialogues that choose among the weights.
        directory: of the result, see ``load_weights``.
        steps: turns of training.
        looks: at the held-out dialogues.
        checkpoint: folder that survives a kill; what is not finished goes on from it, bit for bit.
        progress: told the share done and a message.

    Raises:
        TrainingDiverged: a number is not finite; the checkpoint keeps the last good state.
    """
    checkpoint.mkdir(parents=True, exist_ok=True)
    watch = BestOnHeldOut(policy, cases, max(steps // looks, 1), checkpoint)
    learn(model, steps, checkpoint=checkpoint / STATE, progress=progress, callbacks=[watch])
    if not watch.looks or watch.looks[-1].steps < model.num_timesteps:
        watch.init_callback(model)
        watch._on_training_start()
        watch.look()
    tensors, _ = read_tensors(watch.weights(watch.best))
    files.write(directory / WEIGHTS, safetensors.torch.save(tensors))
    files.write_json(directory / LOOKS, {"best": vars(watch.best), "looks": [vars(look) for look in watch.looks]})


def save_weights(net: nn.Module, path: Path) -> None:
    """Write the parameters of a network."""
    held = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    files.write(path, safetensors.torch.save(held))


def load_weights(net: nn.Module, path: Path) -> None:
    """Give a network the parameters in a file.

    Raises:
        InputError: the file is absent or damaged, of another network, or holds a number that is not finite.
    """
    tensors: dict[str, Tensor]
    tensors, _ = read_tensors(path)
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{path}: {name}: holds a number that is not finite")
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
