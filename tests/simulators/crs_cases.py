"""Small worlds for the tests of dialogues, and the rules of a dialogue once more, with sets and plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from simulators.crs import Catalogue, Conversation, Dialogue, Embeddings, Rules
from simulators.crs.generated import Generated, generate

SMALL = Generated(n_users=20, n_items=60, n_types=5, n_values=4, per_user=20, least_types=2, most_types=4)
QUESTIONS = ("binary", "enumerated", "multi_choice")


def embedded(catalogue: Catalogue, dim: int = 6, seed: int = 0, scale: float = 0.5) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    counts = (catalogue.n_users, catalogue.n_items, catalogue.n_attributes)
    return Embeddings(*(scale * torch.randn(count, dim, generator=generator) for count in counts))


def conversation(catalogue: Catalogue | None = None, pairs: np.ndarray | None = None, **rules: object) -> Conversation:
    catalogue = generate(SMALL, 0) if catalogue is None else catalogue
    return Conversation(catalogue, embedded(catalogue), Rules(**rules), pairs)


def written_out(
    edges: list[tuple[int, int]],
    n_items: int,
    types: list[int],
    n_users: int = 2,
    pairs: list[tuple[int, int]] | None = None,
) -> Catalogue:
    """A catalogue by hand; every user has every item with attributes, unless pairs are given."""
    described = sorted({item for item, _ in edges})
    given = pairs if pairs is not None else [(user, item) for user in range(n_users) for item in described]
    return Catalogue(
        name="by hand",
        item_names=tuple(f"item {i}" for i in range(n_items)),
        attribute_names=tuple(f"value {i}" for i in range(len(types))),
        type_names=tuple(f"type {i}" for i in range(max(types) + 1)),
        attribute_type=np.array(types),
        edges=np.array(edges, dtype=np.int64).reshape(-1, 2),
        n_users=n_users,
        interactions={"train": np.array(given, dtype=np.int64).reshape(-1, 2)},
    )


@dataclass
class SlowDialogue:
    """One dialogue after Deng et al. (2021), section 3, and the published code where the paper is silent."""

    catalogue: Catalogue
    embeddings: Embeddings
    rules: Rules
    user: int
    targets: list[int]
    opening: int
    recommended: set[int] = field(default_factory=set)
    rejected: set[int] = field(default_factory=set)
    questions: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    lists: list[list[int]] = field(default_factory=list)
    turn: int = 0

    def __post_init__(self) -> None:
        self.attributes_of: dict[int, set[int]] = {v: set() for v in range(self.catalogue.n_items)}
        self.items_of: dict[int, set[int]] = {p: set() for p in range(self.catalogue.n_attributes)}
        for item, attribute in self.catalogue.edges.tolist():
            self.attributes_of[item].add(attribute)
            self.items_of[attribute].add(item)
        self.order = [self.opening]
        self.asked = {self.opening}
        self.candidate = set(self.items_of[self.opening])

    def named(self, action: list[int]) -> list[int]:
        """The attributes that a question is about."""
        if self.rules.question == "binary":
            return [action[0]]
        if self.rules.question == "enumerated":
            return [p for p, g in enumerate(self.catalogue.attribute_type) if g == action[0]]
        return [p for p in action[: self.rules.choices] if p >= 0]

    def step(self, action: list[int], flip: list[float], unknown: float, leaves: float) -> dict[str, object]:
        rules, pay = self.rules, self.rules.rewards
        self.turn += 1
        last = self.turn == rules.max_turns
        if last and rules.turns == "official":
            self.questions.append(-1)
            self.answers.append(-1)
            self.lists.append([])
            return self._told(pay.quit, done=True, rank=0)
        rank, failed = 0, False
        if action[0] >= 0:
            reward, failed = self._ask(action, flip, unknown < rules.unknown_rate)
        else:
            listed = action[1 : 1 + rules.list_length]
            rank = next((k for k, item in enumerate(listed, 1) if item >= 0 and item in self.targets), 0)
            reward = pay.recommend_success if rank else pay.recommend_failure
            failed = not rank
            if failed:
                shown = {item for item in listed if item >= 0}
                self.candidate -= shown
                self.recommended |= shown
            self.questions.append(-1)
            self.answers.append(4 if rank else 3)
            self.lists.append(listed)
        done = bool(rank)
        if not self.candidate and not rank:
            if rules.on_empty == "relax":
                self.candidate = set(self.attributes_of) - self.recommended
            else:
                reward, done = pay.empty, True
        if not rank and (last or (failed and leaves < rules.quit_hazard)):
            reward, done = pay.quit, True
        return self._told(reward, done, rank)

    def _ask(self, action: list[int], flip: list[float], unsure: bool) -> tuple[float, bool]:
        about, pay = self.named(action), self.rules.rewards
        question = action[0]
        if self.rules.question == "multi_choice":
            question = int(self.catalogue.attribute_type[action[0]])
        self.questions.append(question)
        self.lists.append([])
        fresh = [p for p in about if p not in self.asked]
        self.asked |= set(about)
        if unsure:
            self.answers.append(2)
            return 0.0, False
        known = self.targets if self.rules.question == "multi_choice" else self.targets[:1]
        held = set().union(*(self.attributes_of[v] for v in known if v >= 0))
        says = {p: (p in held) != (u < self.rules.answer_noise) for p, u in zip(about, flip, strict=False)}
        yes, no = [p for p in fresh if says[p]], [p for p in fresh if not says[p]]
        self.order += yes
        self.rejected |= set(no)
        if yes:
            parts = [self.items_of[p] for p in yes]
            having = set().union(*parts) if self.rules.question == "multi_choice" else set.intersection(*parts)
            narrowed = self.candidate & having
            if narrowed or self.rules.on_empty == "quit":
                self.candidate = narrowed
        accepts = any(says.values())
        self.answers.append(1 if accepts else 0)
        if self.rules.question == "multi_choice":
            told = sum(says.values())
            return told * pay.ask_success + (len(says) - told) * pay.ask_failure, not accepts
        return (pay.ask_success if accepts else pay.ask_failure), not accepts

    def _told(self, reward: float, done: bool, rank: int) -> dict[str, object]:
        return {"reward": reward, "done": done, "rank": rank, "candidates": len(self.candidate)}

    def scores(self) -> dict[int, float]:
        """Equation 1 of each candidate."""
        user, item, attribute = (
            getattr(self.embeddings, name).double().numpy() for name in ("user", "item", "attribute")
        )
        who = user[self.user] if self.user >= 0 else user.mean(0)
        found = {}
        for v in self.candidate:
            score = who @ item[v] + sum(attribute[p] @ item[v] for p in self.order)
            for p in self.rejected & self.attributes_of[v]:
                term = attribute[p] @ item[v]
                score -= 1 / (1 + math.exp(-term)) if self.rules.rejection == "sigmoid" else term
            found[v] = score
        return found

    def differs(self, state: Dialogue, row: int) -> list[str]:
        """Names of what is not as here in a row of a batch."""
        t = self.turn

        def ids(name: str) -> set[int]:
            return set(getattr(state, name)[row].nonzero().flatten().tolist())

        pad = self.rules.list_length
        expected = {
            "candidate": (ids("candidate"), self.candidate),
            "recommended": (ids("recommended"), self.recommended),
            "asked": (ids("asked"), self.asked),
            "accepted": (ids("accepted"), set(self.order)),
            "rejected": (ids("rejected"), self.rejected),
            "order": ([p for p in state.order[row].tolist() if p >= 0], self.order),
            "questions": (state.questions[row, :t].tolist(), self.questions),
            "answers": (state.answers[row, :t].tolist(), self.answers),
            "lists": (state.lists[row, :t].tolist(), [x + [-1] * (pad - len(x)) for x in self.lists]),
            "turn": (int(state.turn[row]), t),
        }
        wrong = [name for name, (found, wanted) in expected.items() if found != wanted]
        scores = self.scores()
        near = all(abs(float(state.score[row, v]) - s) < 2e-5 * max(1, abs(s)) for v, s in scores.items())
        return wrong + ([] if near else ["score"])
