"""UNICORN's learner: double, dueling, prioritised Q-learning on histories of dialogues (section 4.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor

from apps.crs.demonstrations import demonstrations
from apps.crs.learned import QPolicy
from apps.crs.policies import Policy
from apps.crs.unicorn.history import HistoryFeatures, restore
from apps.crs.unicorn.network import UnicornNetwork, UnicornPolicy
from apps.crs.unicorn.ranking import RandomItems
from apps.crs.unicorn.settings import UnicornSettings
from core.rl.demonstrations import DemonstrationDQN
from core.rl.replay import ReplayBatch
from core.simulation import SB3VecEnv
from simulators.crs.choice import CandidateChoice, EntropyRanking, Ranking
from simulators.crs.conversation import Conversation


class UnicornDQN(DemonstrationDQN):
    """``DemonstrationDQN`` with squared errors and an importance exponent that grows with the updates.

    Args:
        *args: of ``DemonstrationDQN``.
        priority_beta_step: by which the exponent grows with every gradient step, up to 1.
        official_exploration: exploring means a list with probability |V_cand| / (|V_cand| + |P_cand|), else a question,
            as when one draws from all candidates and all open attributes (the question is still one of the action set).
        **kwargs: of ``DemonstrationDQN``.
    """

    saved_arguments = (*DemonstrationDQN.saved_arguments, "priority_beta_step", "official_exploration")

    def __init__(
        self, *args: Any, priority_beta_step: float = 0.001, official_exploration: bool = False, **kwargs: Any
    ) -> None:
        self.priority_beta_step, self.official_exploration = priority_beta_step, official_exploration
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        first = self._beta_schedule
        self._beta_schedule: Any = lambda left: min(1.0, first(left) + self.priority_beta_step * self._n_updates)

    @property
    def network(self) -> UnicornNetwork:
        """The online network."""
        network: Any = self.q_net.q_net
        assert isinstance(network, UnicornNetwork)
        return network

    def critic_loss(self, q: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """Mean squared error, weighted; all ``(N, 1)``."""
        squared = (q - target).square()
        return (squared if weights is None else weights * squared).mean()

    def next_values(self, batch: ReplayBatch) -> Tensor:
        """See ``DQN``; both networks read the same graphs, which are built once."""
        return super().next_values(replace(batch, next_observations=self.network.scene(batch.next_observations)))

    def _choose(self, observations: Any, masks: Tensor | None, epsilon: float) -> Tensor:
        if not self.official_exploration or epsilon <= 0 or masks is None:
            return super()._choose(observations, masks, epsilon)
        explores = torch.rand(len(masks), device=self.device) < epsilon
        allowed = torch.where(explores.unsqueeze(1), self._explored_kind(observations, masks), masks)
        return torch.where(explores, self._uniform(len(masks), allowed), super()._choose(observations, masks, 0.0))

    def _explored_kind(self, observations: Any, masks: Tensor) -> Tensor:
        """The masks, with the lists only or the questions only; as they are where they allow one kind alone."""
        world = self.network.world
        known = restore(world, observations)
        row, item = known["candidate"].nonzero(as_tuple=True)
        pair, attribute = world.relation.attributes_of(item)
        reached = torch.zeros_like(known["asked"])
        reached[row[pair], attribute] = True
        items, attributes = known["candidate"].sum(1), (reached & ~known["asked"]).sum(1)
        lists = torch.rand(len(masks), device=self.device) * (items + attributes) < items
        is_list = torch.arange(masks.shape[1], device=self.device) >= observations["question"].shape[1]
        kept = masks & (is_list == lists.unsqueeze(1))
        return torch.where(kept.any(1, keepdim=True), kept, masks)


def new_choice(world: Conversation, settings: UnicornSettings) -> CandidateChoice:
    """The action set A_t with the histories of the dialogues.

    Raises:
        InputError: rules whose candidates do not follow from the history, or more items than a list has.
    """
    ranking: Ranking = EntropyRanking(settings.attribute_selection)
    if settings.item_selection == "random":
        ranking = RandomItems(ranking)
    features = HistoryFeatures(world)
    return CandidateChoice(world, features, questions=settings.questions, items=settings.items, ranking=ranking)


def warm_start(model: UnicornDQN, demonstrator: Policy, seed: int) -> None:
    """Show the learner the demonstrator's dialogues, and let it learn from them, as its settings say.

    Args:
        model: just constructed; one that goes on from ``restore_state`` has all this already.
        demonstrator: plays in the learner's world.
        seed: of the dialogues.
    """
    settings = model.network.settings
    if settings.demonstrations:
        choice = new_choice(model.network.world, settings)
        model.demonstrate(demonstrations(choice, demonstrator, settings.demonstrations, seed))
        if settings.pretraining:
            model.pretrain(settings.pretraining)


def new_unicorn(
    world: Conversation, settings: UnicornSettings, seed: int | None, *, device: torch.device | str = "cpu"
) -> UnicornDQN:
    """A learner on dialogues of ``world``, which has to be on the same device.

    A seed restarts the generators of the process; None leaves them alone, for a network whose weights will be read.

    Raises:
        InputError: as ``new_choice`` and ``UnicornNetwork``.
    """
    env = SB3VecEnv(new_choice(world, settings), settings.envs, scaled=False, device=device)
    first, last = settings.explore
    rate = settings.learning_rate
    final = rate if settings.final_learning_rate is None else settings.final_learning_rate
    official = settings.compat == "official"
    return UnicornDQN(
        UnicornPolicy,
        env,
        policy_kwargs={
            "world": world,
            "settings": settings,
            "optimizer_kwargs": {"weight_decay": settings.weight_decay},
        },
        learning_rate=LinearSchedule(rate, final, 1.0),
        buffer_size=settings.memory,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch,
        gamma=settings.gamma,
        tau=settings.tau,
        target_update_interval=0,
        train_freq=1,
        gradient_steps=settings.updates,
        double=True,
        prioritized=True,
        priority_alpha=settings.priority_alpha,
        priority_beta=settings.priority_beta,
        priority_eps=settings.priority_eps,
        priority_initial=settings.priority_initial,
        priority_beta_step=settings.priority_beta_step,
        max_grad_norm=settings.max_grad_norm,
        exploration_initial_eps=last if official else first,
        exploration_final_eps=last,
        exploration_fraction=settings.explore_share,
        official_exploration=official,
        demonstration_share=settings.demonstration_share,
        imitation_weight=LinearSchedule(*settings.imitation, 1.0),
        margin=settings.margin,
        seed=seed,
        device=device,
    )


def policy_of(model: UnicornDQN, world: Conversation | None = None) -> QPolicy:
    """The greedy policy of a learner, as it stands and as it will stand when it has learnt further.

    Args:
        model: the learner.
        world: where to act; by default where it learns.
    """
    network = model.network
    return QPolicy(new_choice(world or network.world, network.settings), network)
