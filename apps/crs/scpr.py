"""SCPR: when to ask is learnt, what to ask is reasoned on the graph (Lei et al. 2020, KDD).

The conversation becomes a world of two actions, ask the best question or recommend the best list, which any learner of
discrete actions can be trained on. Questions are those that a walk can reach: two hops from the attribute accepted
last, through an item that is still a candidate. Of these the one of the largest weighted entropy is asked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from apps.crs.flat_choice import EDGES, FlatChoice, FlatPolicy, View, history, length_bins
from core.rl import DQN
from core.rl.training import learn
from core.seeds import stream
from core.simulation.sb3_vec_env import SB3VecEnv
from core.study import Config
from simulators.crs import selection
from simulators.crs.choice import EntropyRanking, Ranking
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation

ASK, RECOMMEND = 0, 1
"""The actions."""


class ScprChoice(FlatChoice):
    """Ask the best question or recommend; seen are the history of T turns and the 8 bins of the candidates' number.

    Args:
        world: the conversation.
        ranking: what is worth asking.
    """

    def __init__(self, world: Conversation, ranking: Ranking = EntropyRanking()) -> None:  # noqa: B008 (frozen)
        super().__init__(world, 1, world.rules.max_turns + len(EDGES) + 1, bound=1.0)
        self.ranking = ranking

    def view(self, observation: Observation) -> View:
        """See the class."""
        value, _, _ = self.ranking(self.world, observation)
        value = value.masked_fill(~reachable(self.world, observation), -torch.inf)
        best = selection.question_values(self.world, value).max(1)
        there = (best.values > -torch.inf).unsqueeze(1)
        seen = torch.cat([history(observation), length_bins(observation)], 1)
        named = selection.named(self.world, best.indices.unsqueeze(1), value)
        return View(seen, self.mask(observation, there), named)


def reachable(world: Conversation, observation: Observation) -> Tensor:
    """``(B, P)`` bool, the attributes of the candidates that have the attribute accepted last.

    Where nothing is accepted yet, those of all candidates. Candidates without the attribute accepted last are left
    where any of several accepted ones suffices, or an answer was wrong.
    """
    order, candidate = observation["order"], observation["candidate"].bool()
    told = (order >= 0).sum(1)
    last = order.gather(1, (told - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    having = (told == 0).unsqueeze(1).expand_as(candidate).clone()
    having[world.relation.items_of(last)] = True
    row, item = (candidate & having).nonzero(as_tuple=True)
    pair, attribute = world.relation.attributes_of(item)
    found = torch.zeros_like(observation["asked"], dtype=torch.bool)
    found[row[pair], attribute] = True
    return found


class ScprSettings(Config):
    """How the two-action network is trained: deep Q-learning as in the published settings, on several dialogues."""

    timesteps: int = Field(default=130_000, ge=1)
    """Turns of training in all dialogues together."""
    hidden: int = Field(default=64, ge=1)
    """Width of the hidden layer."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam."""
    batch: int = Field(default=128, ge=1)
    """Turns of an update."""
    memory: int = Field(default=20_000, ge=1)
    """Turns that are remembered."""
    warm_up: int = Field(default=1_000, ge=0)
    """Turns before the first update."""
    dialogues: int = Field(default=64, ge=1)
    """Held at a time."""
    updates: int = Field(default=2, ge=1)
    """After a turn of all of them."""
    discount: float = Field(default=0.999, gt=0, le=1)
    """Per turn."""
    tau: float = Field(default=0.01, gt=0, le=1)
    """Share by which the target network follows at every update."""
    exploration: tuple[float, float] = (0.9, 0.1)
    """Probability of a random action at the start and at the end."""
    exploration_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the training over which it falls."""


def new_scpr(
    world: Conversation, settings: ScprSettings, seed: int, *, device: torch.device | str | None = None
) -> DQN:
    """The learner, untrained.

    Args:
        world: the conversation, whose pairs are those to train on.
        settings: of the training.
        seed: of weights, exploration and dialogues.
        device: of the networks; the world's by default.
    """
    env = SB3VecEnv(
        ScprChoice(world), settings.dialogues, scaled=False, device=world.device, seed=stream(seed, "dialogues")
    )
    return DQN(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        buffer_size=settings.memory,
        learning_starts=settings.warm_up,
        batch_size=settings.batch,
        tau=settings.tau,
        gamma=settings.discount,
        train_freq=1,
        gradient_steps=settings.updates,
        target_update_interval=0,
        double=True,
        exploration_initial_eps=settings.exploration[0],
        exploration_final_eps=settings.exploration[1],
        exploration_fraction=settings.exploration_share,
        policy_kwargs={"net_arch": [settings.hidden]},
        seed=seed,
        device=world.device if device is None else device,
    )


class ScprPolicy(FlatPolicy):
    """What a learner does with the weights it has now.

    Args:
        world: the conversation that is evaluated.
        model: of ``new_scpr``.
    """

    def __init__(self, world: Conversation, model: DQN) -> None:
        super().__init__(ScprChoice(world), copy.deepcopy(model.q_net))


def train_scpr(
    world: Conversation,
    settings: ScprSettings,
    seed: int,
    *,
    device: torch.device | str | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> ScprPolicy:
    """Train on the pairs of the world.

    Args:
        world: the conversation.
        settings: of the training.
        seed: two trainings with the same seed, on the same kind of device, are equal.
        device: of the networks; the world's by default.
        checkpoint: a file from which an interrupted training goes on, bit for bit, and which it keeps up to date.
        progress: told the share done and a message.

    Raises:
        TrainingDiverged: a loss or a weight is not finite.
    """
    model = new_scpr(world, settings, seed, device=device)
    learn(model, settings.timesteps, checkpoint=checkpoint, progress=progress)
    return ScprPolicy(world, model)
