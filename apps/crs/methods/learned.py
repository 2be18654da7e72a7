"""Methods that learn from dialogues with simulated users."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from apps.crs.active_inference import BeliefRanking
from apps.crs.learned import QPolicy
from apps.crs.methods.method import Method, Workbench
from apps.crs.methods.rules import BeliefSettings
from apps.crs.policies import Policy
from apps.crs.training import WEIGHTS, QLearning, load_weights, new_dqn, train
from core.seeds import stream
from simulators.crs import Conversation
from simulators.crs.choice import CandidateChoice, EntropyRanking, Ranking
from simulators.crs.features import CompactFeatures
from simulators.crs.selection import Selection


class DQNMethod(Method):
    """A dueling double DQN on a compact state and the K_p best questions, or recommending the best list."""

    kind: Literal["dqn"] = "dqn"
    """Kind of method."""
    learning: QLearning = QLearning()
    """Of the network."""
    questions: int = Field(default=10, ge=1)
    """K_p."""
    selection: Selection = "weighted_entropy"
    """How questions are valued; items are ranked by their score."""
    belief: BeliefSettings | None = None
    """A Bayesian's posterior among the features; none if not given."""
    ranked_by_belief: bool = False
    """Whether the posterior also ranks questions and items."""

    learns: ClassVar[bool] = True

    def choice(self, world: Conversation) -> CandidateChoice:
        """What the network chooses among."""
        belief = None if self.belief is None else self.belief.belief()
        ranking: Ranking = EntropyRanking(self.selection)
        if self.ranked_by_belief:
            ranking = BeliefRanking(belief or BeliefSettings().belief())
        return CandidateChoice(world, CompactFeatures(belief), questions=self.questions, ranking=ranking)

    def make(self, bench: Workbench, seed: int) -> None:
        """Train it."""
        world = bench.opened.world
        model = new_dqn(
            self.choice(world), self.learning, stream(seed, self.name), policy="ActionSetPolicy", device=bench.device
        )
        train(
            model,
            QPolicy(self.choice(world), model.q_net),
            bench.opened.held_out(),
            bench.directory,
            steps=self.learning.steps,
            looks=self.learning.looks,
            checkpoint=bench.checkpoint,
            progress=bench.progress,
        )

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        choice = self.choice(world)
        small = self.learning.model_copy(update={"envs": 1, "memory": 1})
        net = new_dqn(choice, small, 0, policy="ActionSetPolicy", device=str(world.device)).q_net
        load_weights(net, directory / WEIGHTS)
        return QPolicy(choice, net)
