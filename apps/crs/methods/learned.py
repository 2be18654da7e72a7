"""Methods that learn from dialogues with simulated users."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from apps.crs import unicorn
from apps.crs.active_inference import ActiveInference, BeliefRanking
from apps.crs.crm import CrmPolicy, CrmSettings
from apps.crs.demonstrations import demonstrations
from apps.crs.ear import EarPolicy, EarSettings
from apps.crs.flat_choice import FlatPolicy
from apps.crs.grouping import GroupedChoice, GroupedPolicy, spherical_kmeans
from apps.crs.learned import QPolicy
from apps.crs.methods.method import Method, Workbench
from apps.crs.methods.rules import BeliefSettings
from apps.crs.policies import Policy, Threshold
from apps.crs.question_policy import QuestionPolicy, QuestionSettings
from apps.crs.scpr import ScprChoice
from apps.crs.training import STATE, WEIGHTS, QLearning, load_weights, new_dqn, save_weights, train
from core.errors import InputError
from core.rl.demonstrations import DemonstrationDQN
from core.seeds import stream
from core.simulation.simulator import Simulator
from core.study import Config
from simulators.crs import Conversation
from simulators.crs.choice import CandidateChoice, EntropyRanking, Ranking
from simulators.crs.features import CompactFeatures
from simulators.crs.selection import Selection


class Learner(Method):
    """A method that trains a Q-network."""

    learning: QLearning = QLearning()
    """Of the network."""

    learns: ClassVar[bool] = True
    policy_name: ClassVar[Literal["ActionSetPolicy", "MlpPolicy"]] = "ActionSetPolicy"

    def choice(self, world: Conversation) -> Simulator:
        """What the network chooses among."""
        raise NotImplementedError

    def acting(self, choice: Simulator, q_net: nn.Module) -> Policy:
        """The policy that follows the network."""
        raise NotImplementedError

    def further(self) -> dict[str, Any]:
        """Further arguments of the learner."""
        return {}

    def warm_start(self, model: DemonstrationDQN, bench: Workbench, seed: int) -> None:
        """What comes before the training; nothing by default."""

    def make(self, bench: Workbench, seed: int) -> None:
        """Train the network."""
        choice, own = self.choice(bench.opened.world), stream(seed, self.name)
        model = new_dqn(choice, self.learning, own, policy=self.policy_name, device=bench.device, **self.further())
        if not (bench.checkpoint / STATE).exists():
            self.warm_start(model, bench, seed)
        train(
            model,
            self.acting(choice, model.q_net),
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
        net = new_dqn(choice, small, None, policy=self.policy_name, device=str(world.device)).q_net
        load_weights(net, directory / WEIGHTS)
        return self.acting(choice, net)


class DemonstrationSettings(Config):
    """Dialogues of a rule that a network learns from as well."""

    demonstrator: Literal["threshold", "active_inference"] = "threshold"
    """Who shows how: asking while there are more than ``n`` candidates, or active inference."""
    n: int = Field(default=100, ge=0)
    """Of the threshold."""
    dialogues: int = Field(default=500, ge=1)
    """That are shown."""
    pretraining: int = Field(default=300, ge=0)
    """Gradient steps on them alone, before the training."""
    share: float = Field(default=0.25, ge=0, lt=1)
    """Of each batch."""
    regulariser: Literal["margin", "kl"] = "margin"
    """The demonstrated action is to be the best by a margin, or the policy near one cloned from the demonstrations."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.regulariser == "kl" and not self.pretraining:
            raise InputError("pretraining: 0; must be at least 1 with regulariser kl, to clone the demonstrator")
        return self

    def policy(self, world: Conversation, belief: BeliefSettings | None) -> Policy:
        """The demonstrator."""
        if self.demonstrator == "threshold":
            return Threshold(world, self.n)
        return ActiveInference(world, (belief or BeliefSettings()).belief())


class DQNMethod(Learner):
    """A dueling double DQN on a compact state and the K_p best questions, or recommending the best list."""

    kind: Literal["dqn"] = "dqn"
    """Kind of method."""
    questions: int = Field(default=10, ge=1)
    """K_p."""
    selection: Selection = "weighted_entropy"
    """How questions are valued; items are ranked by their score."""
    embeddings: bool = False
    """Whether embeddings are among the features; counts, entropies, shares and turns alone carry over better."""
    belief: BeliefSettings | None = None
    """A Bayesian's posterior among the features; none if not given."""
    ranked_by_belief: bool = False
    """Whether the posterior also ranks questions and items."""
    shown: DemonstrationSettings | None = None
    """Demonstrations; none if not given."""

    def choice(self, world: Conversation) -> CandidateChoice:
        """The best questions of the moment and the best list."""
        belief = None if self.belief is None else self.belief.belief()
        ranking: Ranking = EntropyRanking(self.selection)
        if self.ranked_by_belief:
            ranking = BeliefRanking(belief or BeliefSettings().belief())
        features = CompactFeatures(belief, self.embeddings)
        return CandidateChoice(world, features, questions=self.questions, ranking=ranking)

    def acting(self, choice: Simulator, q_net: nn.Module) -> Policy:
        """The greedy policy."""
        assert isinstance(choice, CandidateChoice)
        return QPolicy(choice, q_net, relaxes=self.ranked_by_belief)

    def further(self) -> dict[str, Any]:
        """How demonstrations are learned from."""
        if self.shown is None:
            return {}
        return {"demonstration_share": self.shown.share, "regulariser": self.shown.regulariser}

    def warm_start(self, model: DemonstrationDQN, bench: Workbench, seed: int) -> None:
        """Learn from the demonstrations."""
        if self.shown is not None:
            world = bench.opened.world
            shown = demonstrations(
                self.choice(world), self.shown.policy(world, self.belief), self.shown.dialogues, seed
            )
            model.demonstrate(shown)
            if self.shown.pretraining:
                model.pretrain(self.shown.pretraining)


class GroupedMethod(Learner):
    """The same network in two stages: first a group of attributes, then one of the group; or recommending."""

    kind: Literal["grouped"] = "grouped"
    """Kind of method."""
    groups: int | None = Field(default=None, ge=1)
    """Clusters of the attributes' embeddings; the types of the catalogue if not given."""

    def choice(self, world: Conversation) -> GroupedChoice:
        """Groups and their attributes."""
        labels = None
        if self.groups is not None:
            labels = spherical_kmeans(world.embeddings.attribute, self.groups, 0)
        return GroupedChoice(world, labels)

    def acting(self, choice: Simulator, q_net: nn.Module) -> Policy:
        """The greedy policy."""
        assert isinstance(choice, GroupedChoice)
        return GroupedPolicy(choice, q_net)


class ScprMethod(Learner):
    """A DQN that only decides whether to ask or to recommend, as SCPR (Lei et al. 2020)."""

    kind: Literal["scpr"] = "scpr"
    """Kind of method."""
    learning: QLearning = QLearning(hidden=(64,))
    """Of the network."""

    policy_name: ClassVar[Literal["ActionSetPolicy", "MlpPolicy"]] = "MlpPolicy"

    def choice(self, world: Conversation) -> ScprChoice:
        """To ask or to recommend."""
        return ScprChoice(world)

    def acting(self, choice: Simulator, q_net: nn.Module) -> Policy:
        """The greedy policy."""
        assert isinstance(choice, ScprChoice)
        return FlatPolicy(choice, q_net)


class UnicornMethod(Method):
    """UNICORN: a graph of the dialogue, an encoder, and a dueling double DQN over questions and items."""

    kind: Literal["unicorn"] = "unicorn"
    """Kind of method."""
    settings: unicorn.UnicornSettings = unicorn.UnicornSettings()
    """Of the network and its training."""

    learns: ClassVar[bool] = True

    def make(self, bench: Workbench, seed: int) -> None:
        """Train it."""
        world = bench.opened.world
        model = unicorn.new_unicorn(world, self.settings, stream(seed, self.name), device=bench.device)
        if not (bench.checkpoint / STATE).exists():
            unicorn.warm_start(model, Threshold(world, 100), seed)
        train(
            model,
            unicorn.policy_of(model),
            bench.opened.held_out(),
            bench.directory,
            steps=self.settings.steps,
            looks=self.settings.looks,
            checkpoint=bench.checkpoint,
            progress=bench.progress,
        )

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        small = self.settings.model_copy(update={"memory": 1, "envs": 1})
        model = unicorn.new_unicorn(world, small, None, device=world.device)
        load_weights(model.q_net, directory / WEIGHTS)
        return unicorn.policy_of(model)


class QuestionMethod(Method):
    """A method that learns an output for every question."""

    learns: ClassVar[bool] = True
    policy_type: ClassVar[type[QuestionPolicy]]

    @property
    def trained_by(self) -> QuestionSettings:
        """Of the network and its training."""
        raise NotImplementedError

    def make(self, bench: Workbench, seed: int) -> None:
        """Train it."""
        policy = self.policy_type.train(
            bench.opened.world,
            self.trained_by,
            stream(seed, self.name),
            checkpoint=bench.checkpoint / STATE,
            progress=bench.progress,
        )
        save_weights(policy.network, bench.directory / WEIGHTS)

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        policy = self.policy_type.untrained(world, self.trained_by, seed=seed)
        load_weights(policy.network, directory / WEIGHTS)
        return policy


class EarMethod(QuestionMethod):
    """EAR: a network over all questions, taught by maximum entropy, then by its own rewards (Lei et al. 2020)."""

    kind: Literal["ear"] = "ear"
    """Kind of method."""
    settings: EarSettings = EarSettings()
    """Of the network and its training."""

    policy_type: ClassVar[type[QuestionPolicy]] = EarPolicy

    @property
    def trained_by(self) -> QuestionSettings:
        """See ``QuestionMethod``."""
        return self.settings


class CrmMethod(QuestionMethod):
    """CRM: the same training of a network on the belief about each attribute (Sun and Zhang 2018)."""

    kind: Literal["crm"] = "crm"
    """Kind of method."""
    settings: CrmSettings = CrmSettings()
    """Of the network and its training."""

    policy_type: ClassVar[type[QuestionPolicy]] = CrmPolicy

    @property
    def trained_by(self) -> QuestionSettings:
        """See ``QuestionMethod``."""
        return self.settings
