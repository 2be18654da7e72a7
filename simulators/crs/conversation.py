"""Multi-round conversational recommendation: ask about an attribute or recommend a list, turn by turn.

The environment of Lei et al. (2020, SCPR, KDD) and Deng et al. (2021, UNICORN, SIGIR, arXiv 2105.09710, section 3). A
user who has an item in mind opens with one of its attributes and answers truthfully, unless ``Rules`` say otherwise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from core.simulation.simulator import Step, Variable
from simulators.crs.catalogue import Catalogue, Ids
from simulators.crs.dialogue import (
    DO_NOT_CARE,
    LIST_ACCEPTED,
    LIST_REJECTED,
    NO,
    NONE,
    UNASKED,
    YES,
    Dialogue,
    Noise,
    Reply,
)
from simulators.crs.embeddings import Embeddings
from simulators.crs.relation import Relation
from simulators.crs.rules import Rules


class Conversation:
    """The simulator of dialogues on a catalogue; nothing in it is of size batch times items times attributes.

    An action is int64 ``(B, A)``. In column 0 stands what is asked about, an attribute (a type, where questions are
    enumerated), or -1 to recommend; the other columns are then the items of the list, -1 where it is shorter. A
    multi-choice question has its attributes, of one type, in the first columns, -1 after them.

    The user answers about the target. Where multi-choice questions meet several acceptable items, an attribute of any
    of them is accepted.

    Args:
        catalogue: what is talked about.
        embeddings: of its users, items and attributes.
        rules: of a dialogue.
        pairs: ``(n, 2)`` (user, item) that ``reset`` draws from, a user first and then one of the user's items; the
            training split by default.
        device: where the tables are.

    Raises:
        InputError: embeddings of another catalogue, more targets or a longer list than items, or pairs that are not of
            this catalogue.
    """

    agents = 1

    def __init__(
        self,
        catalogue: Catalogue,
        embeddings: Embeddings,
        rules: Rules = Rules(),  # noqa: B008 (frozen)
        pairs: Ids | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        embeddings.check(catalogue)
        self.catalogue, self.device = catalogue, torch.device(device)
        self.embeddings = embeddings.to(self.device)
        self.relation: Relation = catalogue.relation_on(self.device)
        # Somebody unknown is found at index -1.
        self.users = torch.cat([self.embeddings.user, self.embeddings.user.mean(0, keepdim=True)])
        self.types = torch.as_tensor(catalogue.attribute_type, device=self.device)
        self.leaves = _leaves(catalogue).to(self.device)
        self._set_rules(rules)
        self.questions = catalogue.n_attributes if rules.question == "binary" else catalogue.n_types
        self._set_pairs(catalogue.pairs("train") if pairs is None else pairs)

    def _set_rules(self, rules: Rules) -> None:
        items = self.catalogue.n_items
        for name in ("list_length", "targets"):
            if getattr(rules, name) > items:
                raise InputError(f"rules.{name} = {getattr(rules, name)}: must be at most {items}, the number of items")
        self.rules = rules
        self.width = {"binary": 1, "enumerated": self.leaves.shape[1], "multi_choice": rules.choices}[rules.question]

    def _set_pairs(self, pairs: Ids) -> None:
        rows = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        if not len(rows):
            raise InputError(f"{self.catalogue.name}: pairs: none; needs at least one (user, item)")
        counts = (self.catalogue.n_users, self.catalogue.n_items)
        if (rows < 0).any() or (rows >= counts).any():
            raise InputError(f"{self.catalogue.name}: pairs: an id out of range; allowed: user and item below {counts}")
        if not self.catalogue.described[rows[:, 1]].all():
            raise InputError(f"{self.catalogue.name}: pairs: an item without attributes cannot be a target")
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        _, first, counts_of = np.unique(rows[:, 0], return_index=True, return_counts=True)
        self._pairs, self._first, self._counts = (
            torch.as_tensor(x, device=self.device) for x in (rows, first, counts_of)
        )

    def with_rules(self, **changes: Any) -> Conversation:
        """The same conversation under other rules; the kind of question stays."""
        other = copy.copy(self)
        other._set_rules(replace(self.rules, **changes))
        if other.rules.question != self.rules.question:
            raise InputError(f"rules.question = {other.rules.question!r}: must stay {self.rules.question!r}")
        return other

    def with_pairs(self, pairs: Ids) -> Conversation:
        """The same conversation about other pairs."""
        other = copy.copy(self)
        other._set_pairs(pairs)
        return other

    # ---- spaces

    @property
    def columns(self) -> int:
        """Columns of an action."""
        return max(1 + self.rules.list_length, self.width if self.rules.question == "multi_choice" else 1)

    @property
    def action_space(self) -> gymnasium.spaces.MultiDiscrete:
        """See the class."""
        first = self.catalogue.n_attributes if self.rules.question != "enumerated" else self.catalogue.n_types
        others = self.catalogue.n_items
        if self.rules.question == "multi_choice":
            others = max(others, self.catalogue.n_attributes)
        sizes = np.full(self.columns, others + 1)
        sizes[0] = first + 1
        return gymnasium.spaces.MultiDiscrete(sizes, start=np.full(self.columns, NONE))

    @property
    def observation_space(self) -> gymnasium.spaces.Dict:
        """All of ``Dialogue`` but the targets, and with numbers for truth values."""
        rules, box = self.rules, gymnasium.spaces.Box
        v, p, t = self.catalogue.n_items, self.catalogue.n_attributes, rules.max_turns
        ids = max(v, p, self.catalogue.n_users)
        binary = gymnasium.spaces.MultiBinary
        return gymnasium.spaces.Dict(
            {
                "user": box(NONE, ids, (), np.int64),
                "score": box(-1e6, 1e6, (v,), np.float32),
                **{name: binary(v) for name in ("candidate", "recommended")},
                **{name: binary(p) for name in ("asked", "accepted", "rejected")},
                "order": box(NONE, ids, (self.order_length,), np.int64),
                "questions": box(NONE, ids, (t,), np.int64),
                "answers": box(NONE, LIST_ACCEPTED, (t,), np.int64),
                "lists": box(NONE, ids, (t, rules.list_length), np.int64),
                "turn": box(0, t, (), np.int64),
            }
        )

    @property
    def order_length(self) -> int:
        """L, the most attributes that can be accepted in a dialogue."""
        return min(self.catalogue.n_attributes, 1 + self.rules.max_turns * self.width)

    @property
    def variables(self) -> dict[str, Variable]:
        """What a roll-out records."""
        return {
            "turn": Variable(long_name="system actions so far", units="turns"),
            "action": Variable(("column",), long_name="what is asked about, or -1 and the items of a list"),
            "candidates": Variable(long_name="items that are still possible", units="items"),
            "is_success": Variable(long_name="an acceptable item was recommended"),
            "rank": Variable(long_name="its place in the list, from 1; 0 for none"),
        }

    # ---- a dialogue

    def reset(self, batch: int, generator: torch.Generator) -> Dialogue:
        """Draw users, then one of the items of each, then one of its attributes, which the user opens with."""
        drawn = torch.rand(3, batch, generator=generator, device=self.device)
        who = _pick(drawn[0], torch.full((batch,), len(self._first), device=self.device))
        pair = self._pairs[self._first[who] + _pick(drawn[1], self._counts[who])]
        return self.reset_to(pair, self._opening(pair[:, 1], drawn[2]))

    def openings(self, items: Tensor, generator: torch.Generator) -> Tensor:
        """``(B,)`` an attribute of each of the items ``(B,)``, uniformly drawn."""
        return self._opening(items, torch.rand(len(items), generator=generator, device=self.device))

    def _opening(self, items: Tensor, drawn: Tensor) -> Tensor:
        start = self.relation.item_start
        return self.relation.item_attributes[start[items] + _pick(drawn, start[items + 1] - start[items])]

    def reset_to(self, pairs: Tensor, opening: Tensor) -> Dialogue:
        """Dialogues of given users and targets ``(B, 2)`` that open with the attributes ``(B,)``; -1 for none."""
        batch, rules = len(pairs), self.rules
        v, p, t = self.catalogue.n_items, self.catalogue.n_attributes, rules.max_turns

        def full(*shape: int, value: int = NONE) -> Tensor:
            return torch.full((batch, *shape), value, dtype=torch.int64, device=self.device)

        none = torch.zeros(batch, p, dtype=torch.bool, device=self.device)
        opened = opening >= 0
        told = none.clone()
        told[opened, opening[opened]] = True
        order = full(self.order_length)
        order[:, 0] = opening
        candidate = torch.zeros(batch, v, dtype=torch.bool, device=self.device)
        candidate[self.relation.items_of(opening)] = True
        candidate |= ~opened.unsqueeze(1)
        start = Dialogue(
            user=pairs[:, 0],
            targets=self._acceptable(pairs[:, 1], opening),
            score=torch.zeros(batch, v, device=self.device),
            candidate=candidate,
            recommended=torch.zeros_like(candidate),
            asked=told,
            accepted=told,
            rejected=none,
            order=order,
            questions=full(t),
            answers=full(t, value=UNASKED),
            lists=full(t, rules.list_length),
            turn=full(value=0),
        )
        return replace(start, score=self.scores(start))

    def noise(self, batch: int, generator: torch.Generator) -> Noise:
        """Uniform numbers of a turn."""
        drawn = torch.rand(batch, self.width + 2, generator=generator, device=self.device)
        return Noise(drawn[:, :-2], drawn[:, -2], drawn[:, -1])

    def observe(self, state: Dialogue, noise: Noise | None) -> dict[str, Tensor]:
        """What the system knows: the dialogue without the targets."""
        return {name: value for name, value in vars(state).items() if name != "targets"}

    def action_mask(self, state: Dialogue) -> None:
        """Every action is possible; asking again or recommending a rejected item is a waste of a turn."""

    def step(self, state: Dialogue, action: Tensor, noise: Noise) -> Step:
        """Ask or recommend, and hear the answer."""
        return self.told(state, action, self.reply(state, action, noise), noise.quit < self.rules.quit_hazard)

    def reply(self, state: Dialogue, action: Tensor, noise: Noise) -> Reply:
        """What the simulated users say, who know their targets and err as the rules have it."""
        leaf, listed = self.leaves_of(action), action[:, 1 : 1 + self.rules.list_length]
        targets = state.targets if self.rules.question == "multi_choice" else state.targets[:, :1]
        has = self.relation.has(targets.unsqueeze(2), leaf.unsqueeze(1)).any(1)
        return Reply(
            yes=has ^ (noise.flip < self.rules.answer_noise),
            unknown=noise.unknown < self.rules.unknown_rate,
            found=((listed.unsqueeze(2) == state.targets.unsqueeze(1)) & (listed >= 0).unsqueeze(2)).any(2),
        )

    def told(self, state: Dialogue, action: Tensor, reply: Reply, impatient: Tensor | None = None) -> Step:
        """The turn once the reply is known.

        Args:
            state: before it.
            action: of the system.
            reply: of the users.
            impatient: ``(B,)`` bool, who leaves if the turn failed; nobody by default.
        """
        rules, rewards = self.rules, self.rules.rewards
        asks = action[:, 0] >= 0
        last = state.turn + 1 >= rules.max_turns
        counts = ~last if rules.turns == "official" else torch.ones_like(last)
        unsure = asks & reply.unknown
        answered = self._heard(state, torch.where(counts.unsqueeze(1), self.leaves_of(action), NONE), reply.yes, unsure)
        listed = action[:, 1 : 1 + rules.list_length]
        listed = torch.where((counts & ~asks).unsqueeze(1) & (listed < self.catalogue.n_items), listed, NONE)
        found = reply.found & (listed >= 0)
        success = found.any(1)

        candidate, recommended = self._narrowed(state, answered.yes), state.recommended
        if not bool(asks.all()):
            missed = torch.where(success.unsqueeze(1), NONE, listed)
            candidate, recommended = _marked(candidate, missed, False), _marked(recommended, missed)
        left = candidate.sum(1)
        empty = left == 0
        if rules.on_empty == "relax":
            candidate = _relaxed(candidate, state.candidate & ~recommended, ~recommended)
            left, empty = candidate.sum(1), torch.zeros_like(empty)

        failed = counts & ~success & (answered.accepts == 0) & ~unsure
        quits = ~success & (last if impatient is None else last | failed & impatient)
        reward = torch.where(
            asks, self._pay(answered), torch.where(success, rewards.recommend_success, rewards.recommend_failure)
        )
        reward = torch.where(empty & ~success, rewards.empty, reward)
        reward = torch.where(quits, rewards.quit, reward)

        after = self._written(state, action, listed, answered, unsure, success, counts)
        after = replace(after, candidate=candidate, recommended=recommended)
        after = replace(after, score=self._rescored(state, after, answered))
        if rules.on_empty == "relax":
            # Of items that come back the old score is that of the turn in which they were ruled out.
            back = (candidate & ~state.candidate).any(1, keepdim=True)
            if bool(back.any()):
                after = replace(after, score=torch.where(back, self.scores(after), after.score))
        rank = torch.where(success, found.to(torch.int64).argmax(1) + 1, 0)
        info = {"is_success": success, "rank": rank, "candidates": left}
        return Step(after, reward, success | quits | empty, info)

    # ---- its parts

    def _acceptable(self, target: Tensor, opening: Tensor) -> Tensor:
        """``(B, m)`` the target and the items with the opening attribute that have most in common with it (Jaccard)."""
        more = self.rules.targets - 1
        if not more:
            return target.unsqueeze(1)
        batch, v = len(target), self.catalogue.n_items
        row, attribute = self.relation.attributes_of(target)
        pair, item = self.relation.items_of(attribute)
        shared = torch.zeros(batch * v, device=self.device)
        shared.index_add_(0, row[pair] * v + item, torch.ones(len(item), device=self.device))
        shared = shared.view(batch, v)
        degree = self.relation.item_start.diff().float()
        alike = shared / (degree[target.clamp(min=0)].unsqueeze(1) + degree - shared).clamp(min=1)
        opens = torch.zeros_like(shared, dtype=torch.bool)
        opens[self.relation.items_of(opening)] = True
        others = torch.arange(v, device=self.device) != target.unsqueeze(1)
        alike = alike.masked_fill(~(opens & others) | (shared == 0), -1.0)
        best = alike.topk(more, dim=1)
        return torch.cat([target.unsqueeze(1), torch.where(best.values > 0, best.indices, NONE)], 1)

    def leaves_of(self, action: Tensor) -> Tensor:
        """``(B, W)`` the attributes that the actions ask about, -1 where there are fewer or none."""
        question = action[:, :1]
        if self.rules.question == "enumerated":
            leaf = self.leaves[question.squeeze(1).clamp(min=0)]
        else:
            leaf = action[:, : self.width]
        if self.rules.question == "multi_choice":
            again = (leaf.unsqueeze(2) == leaf.unsqueeze(1)).tril(-1).any(2)
            leaf = torch.where(again | (leaf >= self.catalogue.n_attributes), NONE, leaf)
        return torch.where(question >= 0, leaf, NONE)

    def _heard(self, state: Dialogue, leaf: Tensor, says: Tensor, unsure: Tensor) -> _Answer:
        """What is new in a reply about attributes ``(B, W)``."""
        known = (leaf >= 0) & ~unsure.unsqueeze(1)
        fresh = known & ~state.asked.gather(1, leaf.clamp(min=0))
        yes, no = torch.where(fresh & says, leaf, NONE), torch.where(fresh & ~says, leaf, NONE)
        return _Answer(leaf, yes, no, (known & says).sum(1), (known & ~says).sum(1))

    def _pay(self, answered: _Answer) -> Tensor:
        """``(B,)`` reward of a question: by the attribute in multi-choice; nothing of a user who does not care."""
        rewards, accepts, refuses = self.rules.rewards, answered.accepts, answered.refuses
        if self.rules.question != "multi_choice":
            refuses = torch.where(accepts > 0, 0, refuses).clamp(max=1)
            accepts = accepts.clamp(max=1)
        return rewards.ask_success * accepts + rewards.ask_failure * refuses

    def _narrowed(self, state: Dialogue, yes: Tensor) -> Tensor:
        """Candidates after these attributes ``(B, W)`` were accepted: with all of them, in multi-choice with any."""
        told = (yes >= 0).sum(1)
        if not bool(told.any()):
            return state.candidate
        pair, item = self.relation.items_of(yes.flatten())
        row = pair // yes.shape[1]
        if self.rules.question == "binary":
            having = torch.zeros_like(state.candidate)
            having[row, item] = True
        else:
            v = self.catalogue.n_items
            hits = torch.zeros(state.candidate.numel(), device=self.device)
            hits.index_add_(0, row * v + item, torch.ones(len(item), device=self.device))
            needed = told.clamp(max=1) if self.rules.question == "multi_choice" else told
            having = hits.view(-1, v) >= needed.unsqueeze(1)
        return state.candidate & (having | (told == 0).unsqueeze(1))

    def _written(
        self,
        state: Dialogue,
        action: Tensor,
        listed: Tensor,
        answered: _Answer,
        unsure: Tensor,
        success: Tensor,
        counts: Tensor,
    ) -> Dialogue:
        """The dialogue with this turn noted, candidates and scores aside."""
        asks = counts & (action[:, 0] >= 0)
        question = action[:, 0]
        if self.rules.question == "multi_choice":
            question = torch.where(asks, self.types[question.clamp(min=0)], question)
        said = torch.where(answered.accepts > 0, YES, NO)
        said = torch.where(unsure, DO_NOT_CARE, said)
        said = torch.where(asks, said, torch.where(success, LIST_ACCEPTED, LIST_REJECTED))
        said = torch.where(counts, said, UNASKED)
        now = torch.arange(self.rules.max_turns, device=self.device) == state.turn.unsqueeze(1)
        before = (state.order >= 0).sum(1, keepdim=True)
        is_yes = answered.yes >= 0
        row, column = is_yes.nonzero(as_tuple=True)
        # A person may volunteer more than questions can find out: what is beyond L stands in the last place.
        place = (before + is_yes.cumsum(1) - 1)[row, column].clamp(max=state.order.shape[1] - 1)
        order = state.order.clone()
        order[row, place] = answered.yes[row, column]
        return replace(
            state,
            asked=_marked(state.asked, answered.leaf),
            accepted=_marked(state.accepted, answered.yes),
            rejected=_marked(state.rejected, answered.no),
            order=order,
            questions=torch.where(now, torch.where(asks, question, NONE).unsqueeze(1), state.questions),
            answers=torch.where(now, said.unsqueeze(1), state.answers),
            lists=torch.where(now.unsqueeze(2), listed.unsqueeze(1), state.lists),
            turn=state.turn + 1,
        )

    # ---- scores

    def scores(self, state: Dialogue) -> Tensor:
        """``(B, V)`` e_u.e_v + sum_accepted e_p.e_v - sum_{rejected, in P_v} term (equation 1), 0 beside candidates."""
        row, item = state.candidate.nonzero(as_tuple=True)
        wanted = self.users[state.user]
        at, attribute = state.accepted.nonzero(as_tuple=True)
        wanted = wanted.index_add(0, at, self.embeddings.attribute[attribute])
        score = self._added(torch.zeros_like(state.score), row, item, wanted.index_select(0, row))
        return self._penalised(score, state.candidate, *state.rejected.nonzero(as_tuple=True))

    def _rescored(self, state: Dialogue, after: Dialogue, answered: _Answer) -> Tensor:
        """The same from the scores before the turn, which is cheaper."""
        score = state.score
        is_yes, is_no = answered.yes >= 0, answered.no >= 0
        at, column = is_yes.nonzero(as_tuple=True)
        if len(at):
            wanted = torch.zeros(len(score), self.embeddings.dim, device=self.device)
            wanted.index_add_(0, at, self.embeddings.attribute[answered.yes[at, column]])
            accepts = is_yes.any(1).nonzero().squeeze(1)
            row, item = after.candidate.index_select(0, accepts).nonzero(as_tuple=True)
            row = accepts.index_select(0, row)
            score = self._added(score, row, item, wanted.index_select(0, row))
        at, column = is_no.nonzero(as_tuple=True)
        return self._penalised(score, after.candidate, at, answered.no[at, column]) if len(at) else score

    def _penalised(self, score: Tensor, candidate: Tensor, row: Tensor, attribute: Tensor) -> Tensor:
        """Scores less the terms of these rejected attributes ``(n,)`` of dialogues ``row`` ``(n,)``."""
        pair, item = self.relation.items_of(attribute)
        row = row.index_select(0, pair)
        kept = candidate.flatten().index_select(0, row * candidate.shape[1] + item).nonzero().squeeze(1)
        pair, row, item = (x.index_select(0, kept) for x in (pair, row, item))
        vector = self.embeddings.attribute.index_select(0, attribute.index_select(0, pair))
        term = (vector * self.embeddings.item.index_select(0, item)).sum(1)
        return _plus(score, row, item, -term.sigmoid() if self.rules.rejection == "sigmoid" else -term)

    def _added(self, score: Tensor, row: Tensor, item: Tensor, vector: Tensor) -> Tensor:
        """Scores with the products of the embeddings of ``(n,)`` items and vectors ``(n, d)`` added."""
        return _plus(score, row, item, (vector * self.embeddings.item.index_select(0, item)).sum(1))


@dataclass(frozen=True)
class _Answer:
    """What the user said: ``(B, W)`` attributes of the question, newly accepted and newly rejected ones, -1 elsewhere;
    and ``(B,)`` to how many of the question the answer was yes, and to how many no.
    """

    leaf: Tensor
    yes: Tensor
    no: Tensor
    accepts: Tensor
    refuses: Tensor


def _leaves(catalogue: Catalogue) -> Tensor:
    """``(G, W)`` the attributes of each type, then -1."""
    order = np.argsort(catalogue.attribute_type, kind="stable")
    kind = catalogue.attribute_type[order]
    counts = np.bincount(kind, minlength=catalogue.n_types)
    table = np.full((catalogue.n_types, counts.max()), NONE)
    table[kind, np.arange(len(order)) - (counts.cumsum() - counts)[kind]] = order
    return torch.as_tensor(table)


def _pick(drawn: Tensor, counts: Tensor) -> Tensor:
    """A whole number below each of ``counts``, from uniform numbers."""
    return torch.minimum((drawn * counts).long(), counts - 1)


def _marked(mask: Tensor, ids: Tensor, value: bool = True) -> Tensor:
    """The mask ``(B, n)`` with the value at the ids ``(B, W)``; -1 is none."""
    row, column = (ids >= 0).nonzero(as_tuple=True)
    marked = mask.clone()
    marked[row, ids[row, column]] = value
    return marked


def _plus(score: Tensor, row: Tensor, item: Tensor, term: Tensor) -> Tensor:
    """Scores ``(B, V)`` with terms ``(n,)`` added where they belong."""
    return score.flatten().scatter_add(0, row * score.shape[1] + item, term).view_as(score)


def _relaxed(candidate: Tensor, before: Tensor, left: Tensor) -> Tensor:
    """Candidates; where there are none those before the answer, and where there are none of these all that is left."""
    candidate = torch.where(candidate.any(1, keepdim=True), candidate, before)
    return torch.where(candidate.any(1, keepdim=True), candidate, left)
