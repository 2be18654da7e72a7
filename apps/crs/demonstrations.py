"""What a rule does in the choice among few actions: transitions that a learner can begin with."""

from __future__ import annotations

import torch
from torch import Tensor

from apps.crs.policies import Policy
from core.errors import InputError
from core.rl.demonstrations import Demonstrations
from core.seeds import stream
from core.simulation import tree
from simulators.crs.choice import CandidateChoice, Options

_BATCH = 512
"""Dialogues at once, which bounds the memory."""


@torch.no_grad()
def demonstrations(choice: CandidateChoice, policy: Policy, dialogues: int, seed: int) -> Demonstrations:
    """Play a rule in the choice, and keep its turns as transitions.

    A question is the action of the option that asks the same. A recommendation is the action that recommends the best
    list or, where the list is chosen by its first item, the list that begins as the policy's does, if that item can be
    chosen, else the best one; the choice's list is what is recommended, whatever else the policy would list. Where
    the choice allows no question the policy recommends. A turn whose question is none of the options is played as the
    policy wishes, and left out of the transitions, because the learner has no action for it.

    Args:
        choice: what the learner chooses from.
        policy: the demonstrator, on the same world.
        dialogues: how many are played, on the choice's pairs.
        seed: of the dialogues.

    Raises:
        InputError: fewer than one dialogue, or no turn that the choice has an action for.
    """
    if dialogues < 1:
        raise InputError(f"demonstrations: dialogues = {dialogues}: must be at least 1")
    generator = torch.Generator(choice.world.device).manual_seed(stream(seed, "demonstrations"))
    turns: list[Demonstrations] = []
    for begin in range(0, dialogues, _BATCH):
        turns += _played(choice, policy, min(_BATCH, dialogues - begin), generator)
    if not sum(len(turn) for turn in turns):
        raise InputError(
            f"demonstrations: no question of {type(policy).__name__} is among the {choice.slots} of the choice"
        )
    first, *rest = turns
    return tree.map_tensors(lambda *parts: torch.cat(parts), first, *rest)


def chosen_by(choice: CandidateChoice, options: Options, mask: Tensor, action: Tensor) -> Tensor:
    """``(B,)`` the choice that comes to the world's actions ``(B, A)``; -1 for a question that is no option.

    Args:
        choice: what is chosen from.
        options: of the dialogues.
        mask: ``(B, K)`` bool, what is allowed.
        action: of a policy.
    """
    named = options.named
    same = (named == action[:, : named.shape[2]].unsqueeze(1)).all(2) & mask[:, : choice.slots]
    question = torch.where(same.any(1), same.to(torch.int64).argmax(1), -1)
    place = torch.full_like(question, choice.slots)
    if choice.items:
        begins = (options.item[:, : choice.items] == action[:, 1:2]) & (action[:, 1:2] >= 0)
        place = place + begins.to(torch.int64).argmax(1)
    lists = (action[:, 0] < 0) | ~mask[:, : choice.slots].any(1)
    return torch.where(lists, place, question)


def _played(
    choice: CandidateChoice, policy: Policy, dialogues: int, generator: torch.Generator
) -> list[Demonstrations]:
    """The transitions of each turn of dialogues that begin together."""
    world = choice.world
    state, turns = choice.reset(dialogues, generator), []
    policy.reset(dialogues)
    alive = torch.arange(dialogues, device=world.device)
    for _ in range(world.rules.max_turns):
        noise = tree.take(world.noise(dialogues, generator), alive)
        seen, mask = choice.observe(state), choice.action_mask(state)
        wanted = policy(world.observe(state.dialogue, noise), state.dialogue)
        chosen = chosen_by(choice, state.options, mask, wanted)
        known = chosen >= 0
        own = choice.action_of(state.options, chosen.clamp(min=0))
        step = world.step(state.dialogue, torch.where(known.unsqueeze(1), own, wanted), noise)
        after = choice.choosing(step.state)
        turn = Demonstrations(
            seen, chosen, step.reward, choice.observe(after), step.terminated, mask, choice.action_mask(after)
        )
        turns.append(tree.take(turn, known))
        goes_on = ~step.terminated
        state, alive = tree.take(after, goes_on), alive[goes_on]
        if not len(alive):
            break
    return turns
