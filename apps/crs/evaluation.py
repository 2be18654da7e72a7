"""Playing dialogues with a policy: every policy meets the same users, targets, openings and luck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.crs.policies import Policy
from core.errors import InputError
from core.simulation import tree
from simulators.crs.catalogue import Ids
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import NONE, Dialogue, Noise

ASKED, LISTED, OVER = 0, 1, -1
"""What was done in a turn."""
BLOCK = 64
"""Dialogues whose luck is drawn at once."""


@dataclass(frozen=True)
class Cases:
    """Dialogues to be played.

    Attributes:
        pairs: ``(n, 2)`` int64 user and target.
        opening: ``(n,)`` int64 attribute of the target that the user opens with.
        seed: of the users' luck.
    """

    pairs: Tensor
    opening: Tensor
    seed: int

    @classmethod
    def of(cls, world: Conversation, pairs: Ids, seed: int, limit: int | None = None) -> Cases:
        """Cases of these pairs in a shuffled order, at most ``limit`` of them, with openings drawn.

        Raises:
            InputError: a limit below 1, or no pair.
        """
        if limit is not None and limit < 1:
            raise InputError(f"limit = {limit}: must be at least 1")
        if not len(pairs):
            raise InputError("pairs: none to be played")
        order = np.random.default_rng(seed).permutation(len(pairs))[:limit]
        chosen = torch.as_tensor(np.ascontiguousarray(pairs[order]), device=world.device)
        generator = torch.Generator(world.device).manual_seed(seed)
        return cls(chosen, world.openings(chosen[:, 1], generator), seed)


def evaluate(
    world: Conversation,
    policy: Policy,
    cases: Cases,
    *,
    batch: int = 512,
    shortcut: bool = False,
    progress: Callable[[float, str], None] | None = None,
) -> xr.Dataset:
    """Play the cases to their end.

    With ``paper`` turns the last action is a recommendation, whatever the policy says.

    Args:
        world: the conversation.
        policy: who asks and recommends.
        cases: what is played.
        batch: dialogues at once; changes nothing in what the users do.
        shortcut: recommend as soon as all candidates fit into a list, as the published code does when it evaluates.
        progress: told the share done and a message.

    Returns:
        Dataset over ``dialogue``: ``user, target, opening, turns`` (T for a failure), ``rank`` (0 for a failure),
        ``return``; over ``(dialogue, turn)``: ``action`` (0 a question, 1 a list, -1 over), ``question`` (-1 for none),
        ``answer``, ``candidates`` left after the turn, ``confidence`` (the belief that the list holds the target, NaN
        where there is none); over ``(dialogue, turn, place)``: ``list``.
    """
    if policy.relaxes:
        world = world.with_rules(on_empty="relax")
    n = len(cases.pairs)
    parts = []
    for begin in range(0, n, batch):
        part = slice(begin, min(begin + batch, n))
        luck = _luck(world, cases.seed, part)
        parts.append(_play(world, policy, cases.pairs[part], cases.opening[part], luck, shortcut))
        if progress is not None:
            progress(part.stop / n, f"dialogue {part.stop} of {n}")
    return xr.concat(parts, "dialogue")


def _luck(world: Conversation, seed: int, part: slice) -> Noise:
    """The luck of some of the dialogues ``(n, T, ...)``, which does not depend on what else is played beside them."""
    turns, blocks = world.rules.max_turns, range(part.start // BLOCK, (part.stop - 1) // BLOCK + 1)
    drawn = []
    for block in blocks:
        of_block = int(np.random.SeedSequence([seed, block]).generate_state(1)[0])
        drawn.append(world.noise(BLOCK * turns, torch.Generator(world.device).manual_seed(of_block)))
    together = tree.map_tensors(lambda *parts: torch.cat(parts).unflatten(0, (-1, turns)), *drawn)
    first = blocks[0] * BLOCK
    return tree.take(together, slice(part.start - first, part.stop - first))


@torch.no_grad()
def _play(
    world: Conversation, policy: Policy, pairs: Tensor, opening: Tensor, luck: Noise, shortcut: bool
) -> xr.Dataset:
    rules, batch = world.rules, len(pairs)
    state = world.reset_to(pairs, opening)
    alive = torch.arange(batch, device=world.device)
    turns = torch.full((batch,), rules.max_turns, device=world.device)
    rank, earned = torch.zeros_like(turns), torch.zeros(batch, device=world.device)
    candidates = torch.zeros(batch, rules.max_turns, dtype=torch.int64, device=world.device)
    confidence = torch.full((batch, rules.max_turns), torch.nan, device=world.device)
    written = {name: getattr(state, name).clone() for name in ("questions", "answers", "lists")}
    policy.reset(batch)
    for t in range(rules.max_turns):
        noise = tree.take(luck, (alive, t))
        known = world.observe(state, noise)
        action = policy(known, state)
        forced = ~rules.may_ask(known["turn"])
        if shortcut:
            forced = forced | (known["candidate"].sum(1) <= rules.list_length)
        forced = forced & (action[:, 0] >= 0)
        if bool(forced.any()):
            some = {name: value[forced] for name, value in known.items()}
            action[forced] = policy.recommend(some)
        confidence[alive, t] = _confidence(policy, known, action)
        step = world.step(state, action, noise)
        earned[alive] += step.reward
        candidates[alive, t] = step.info["candidates"]
        success, ended = step.info["is_success"], step.terminated
        turns[alive[success]], rank[alive[success]] = t + 1, step.info["rank"][success]
        for name, held in written.items():
            held[alive[ended]] = getattr(step.state, name)[ended]
        state, alive = _going(step.state, ended), alive[~ended]
        if not len(alive):
            break
    return _dataset(pairs, opening, turns, rank, earned, candidates, confidence, written)


def _going(state: Dialogue, ended: Tensor) -> Dialogue:
    """The dialogues that go on."""
    going = (~ended).nonzero().squeeze(1)
    return tree.map_tensors(lambda x: x.index_select(0, going), state) if len(going) < len(ended) else state


def _confidence(policy: Policy, known: dict[str, Tensor], action: Tensor) -> Tensor:
    """``(B,)`` the belief that the recommended list holds the target."""
    q = policy.posterior(known)
    if q is None:
        return torch.full((len(action),), torch.nan, device=action.device)
    items = action[:, 1:]
    held = (q.gather(1, items.clamp(min=0)) * (items >= 0)).sum(1)
    return torch.where(action[:, 0] < 0, held, torch.nan)


def _dataset(
    pairs: Tensor,
    opening: Tensor,
    turns: Tensor,
    rank: Tensor,
    earned: Tensor,
    candidates: Tensor,
    confidence: Tensor,
    written: dict[str, Tensor],
) -> xr.Dataset:
    question, answer, lists = (written[name].cpu().numpy() for name in ("questions", "answers", "lists"))
    done = np.where(answer == NONE, OVER, np.where(question >= 0, ASKED, LISTED))
    one, two = ("dialogue",), ("dialogue", "turn")

    def counted(values: Tensor) -> np.ndarray:
        return values.cpu().numpy().astype(np.int32)

    return xr.Dataset(
        {
            "user": (one, counted(pairs[:, 0])),
            "target": (one, counted(pairs[:, 1])),
            "opening": (one, counted(opening)),
            "turns": (one, counted(turns), {"units": "turns", "long_name": "system actions; T for a failure"}),
            "rank": (one, counted(rank), {"long_name": "place of the target in the accepted list; 0 for a failure"}),
            "return": (one, earned.cpu().numpy(), {"long_name": "sum of rewards"}),
            "action": (two, done.astype(np.int8), {"long_name": "0 a question, 1 a list, -1 over"}),
            "question": (two, question.astype(np.int32), {"long_name": "what was asked about; -1 for a list"}),
            "answer": (two, answer.astype(np.int8), {"long_name": "0 no, 1 yes, 2 do not care, 3 no item, 4 an item"}),
            "candidates": (two, counted(candidates), {"units": "items", "long_name": "candidates after the turn"}),
            "confidence": (two, confidence.cpu().numpy(), {"long_name": "belief that the list holds the target"}),
            "list": ((*two, "place"), lists.astype(np.int32), {"long_name": "recommended items; -1 for none"}),
        },
        {"turn": np.arange(1, question.shape[1] + 1)},
    )
