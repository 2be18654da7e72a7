"""The dialogue as the few numbers from which all else follows, so that a replay memory of dialogues stays small."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium
import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from simulators.crs.choice import CandidateChoice, Options
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import DO_NOT_CARE, LIST_ACCEPTED, LIST_REJECTED, NO, NONE, YES, Dialogue
from simulators.crs.selection import Observation


def order_length(world: Conversation) -> int:
    """The most attributes that can be accepted while a candidate is left, which has all of them."""
    most = int(world.relation.item_start.diff().max())
    return min(world.order_length, most)


def check(world: Conversation) -> None:
    """Refuse a world in which the candidates do not follow from the history.

    Raises:
        InputError: multi-choice questions, or rules that relax.
    """
    rules = world.rules
    if rules.question == "multi_choice":
        raise InputError(f"rules.question = {rules.question!r}: for UNICORN it must be binary or enumerated")
    if rules.on_empty == "relax":
        raise InputError(f"rules.on_empty = {rules.on_empty!r}: for UNICORN it must be quit")


class HistoryFeatures:
    """What was said, as ids (int32): ``user, order, questions, answers, lists, turn`` of the dialogue, and the action
    set: ``question`` ``(K_p,)`` and ``item`` ``(K_v,)``. No list of candidates, scores or masks; see ``restore``.

    A dialogue that is over because nothing fits may have more accepted attributes than ``order`` has room for.

    Args:
        world: of the dialogues.

    Raises:
        InputError: see ``check``.
    """

    def __init__(self, world: Conversation) -> None:
        check(world)
        self.length = order_length(world)

    def space(self, choice: CandidateChoice) -> gymnasium.spaces.Dict:
        """See the class."""
        world, rules = choice.world, choice.world.rules
        turns, v, p = rules.max_turns, world.catalogue.n_items, world.catalogue.n_attributes

        def ids(high: int, length: int) -> gymnasium.spaces.Box:
            return gymnasium.spaces.Box(NONE, high, (length,), np.int32)

        return gymnasium.spaces.Dict(
            {
                "user": ids(world.catalogue.n_users - 1, 1),
                "order": ids(p - 1, self.length),
                "questions": ids(world.questions - 1, turns),
                "answers": ids(LIST_ACCEPTED, turns),
                "lists": ids(v - 1, turns * rules.list_length),
                "turn": ids(turns, 1),
                "question": ids(world.questions - 1, choice.slots),
                "item": ids(v - 1, choice.items),
            }
        )

    def __call__(self, choice: CandidateChoice, observation: Observation, options: Options) -> dict[str, Tensor]:
        """See the class."""
        seen = {
            "user": observation["user"].unsqueeze(1),
            "order": observation["order"][:, : self.length],
            "questions": observation["questions"],
            "answers": observation["answers"],
            "lists": observation["lists"].flatten(1),
            "turn": observation["turn"].unsqueeze(1),
            "question": options.question,
            "item": options.item[:, : choice.items],
        }
        return {name: value.int() for name, value in seen.items()}


def restore(world: Conversation, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``world.observe`` of the dialogues that these histories ``(B, ...)`` tell of.

    All but the scores is exact; those are of the candidates alone, and summed in another order than turn by turn.
    """
    at = {name: seen[name].long() for name in ("user", "order", "questions", "answers", "lists", "turn")}
    order, questions, answers = at["order"], at["questions"], at["answers"]
    batch, v, p = len(order), world.catalogue.n_items, world.catalogue.n_attributes
    accepted = _marked(order, p)
    heard = (questions >= 0) & ((answers == NO) | (answers == YES) | (answers == DO_NOT_CARE))
    before = torch.ones_like(heard[0]).outer(torch.ones_like(heard[0])).tril(-1)
    repeated = ((questions.unsqueeze(2) == questions.unsqueeze(1)) & before & heard.unsqueeze(1)).any(2)
    told = heard & ~repeated & (answers != DO_NOT_CARE)
    lists = at["lists"].view(batch, len(questions[0]), -1)
    recommended = _marked(lists.masked_fill((answers != LIST_REJECTED).unsqueeze(2), NONE).flatten(1), v)
    state = Dialogue(
        user=at["user"].squeeze(1),
        targets=torch.full_like(at["user"], NONE),
        score=torch.zeros(batch, v, device=order.device),
        candidate=_having(world, order) & ~recommended,
        recommended=recommended,
        asked=accepted | _marked(_leaves(world, questions, heard), p),
        accepted=accepted,
        rejected=_marked(_leaves(world, questions, told), p) & ~accepted,
        order=torch.nn.functional.pad(order, (0, world.order_length - order.shape[1]), value=NONE),
        questions=questions,
        answers=answers,
        lists=lists,
        turn=at["turn"].squeeze(1),
    )
    return {**world.observe(state, None), "score": world.scores(state)}


def _leaves(world: Conversation, questions: Tensor, which: Tensor) -> Tensor:
    """``(B, n)`` the attributes that these of the questions ``(B, T)`` were about, -1 between them."""
    asked = torch.where(which, questions, NONE)
    if world.rules.question == "binary":
        return asked
    return world.leaves[asked.clamp(min=0)].masked_fill((asked < 0).unsqueeze(2), NONE).flatten(1)


def _having(world: Conversation, attributes: Tensor) -> Tensor:
    """``(B, V)`` the items with all of these attributes ``(B, L)``."""
    pair, item = world.relation.items_of(attributes.flatten())
    row, v = pair // attributes.shape[1], world.catalogue.n_items
    hits = torch.bincount(row * v + item, minlength=len(attributes) * v)
    return hits.view(-1, v) == (attributes >= 0).sum(1, keepdim=True)


def _marked(ids: Tensor, count: int) -> Tensor:
    """``(B, count)`` bool, true at the ids ``(B, n)``; -1 marks none."""
    marked = torch.zeros(len(ids), count + 1, dtype=torch.bool, device=ids.device)
    return marked.scatter(1, torch.where(ids >= 0, ids, count), True)[:, :count]
