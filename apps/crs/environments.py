"""Conversations as gymnasium environments: a choice among the best questions and lists of the moment, with a mask."""

from __future__ import annotations

from core.simulation import GymEnv, GymVectorEnv
from simulators.crs import Conversation
from simulators.crs.choice import CandidateChoice, EntropyRanking, Features, Ranking
from simulators.crs.features import CompactFeatures


class CRSEnv(GymEnv):
    """One dialogue at a time; the action is a place in the action set, ``info["action_mask"]`` says which are allowed.

    Example::

        world = Conversation(catalogue, embeddings)
        env = CRSEnv(world)
        observation, info = env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample(info["action_mask"]))

    Args:
        world: the conversation.
        questions: K_p, how many questions can be chosen from.
        items: K_v, likewise items; 0 for one action that recommends the best list.
        features: what is observed.
        ranking: which questions and items are the best.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        world: Conversation,
        *,
        questions: int = 10,
        items: int = 0,
        features: Features = CompactFeatures(),  # noqa: B008 (frozen)
        ranking: Ranking = EntropyRanking(),  # noqa: B008 (frozen)
    ) -> None:
        choice = CandidateChoice(world, features, questions=questions, items=items, ranking=ranking)
        super().__init__(choice, scaled=False, device=world.device)


class CRSVectorEnv(GymVectorEnv):
    """``num_envs`` dialogues at once; one that ends starts again in the same step. See ``CRSEnv``.

    Args:
        world: the conversation.
        num_envs: dialogues.
        questions: K_p.
        items: K_v.
        features: what is observed.
        ranking: which questions and items are the best.
    """

    def __init__(
        self,
        world: Conversation,
        num_envs: int,
        *,
        questions: int = 10,
        items: int = 0,
        features: Features = CompactFeatures(),  # noqa: B008 (frozen)
        ranking: Ranking = EntropyRanking(),  # noqa: B008 (frozen)
    ) -> None:
        choice = CandidateChoice(world, features, questions=questions, items=items, ranking=ranking)
        super().__init__(choice, num_envs, scaled=False, device=world.device)
