"""The debates in which a debater shows what it is worth: alone, against its like, refuted, and confused.

Sukovic and Radanovic (ICLR 2024, arXiv 2402.15826), section 5; the one-step search takes part as an attacker because
a learned confuser that was trained for a short while proves little.
"""

from __future__ import annotations

import torch

from apps.sepsis.debate import Debate, Debater, Order, argue_alone, hold_debate
from apps.sepsis.debaters import LookaheadDebater
from apps.sepsis.judge import Judge, JudgeEnsemble
from apps.sepsis.preferences import Preferences

SETTINGS = ("alone", "itself", "refuted", "confused")


def matches(
    judge: Judge | JudgeEnsemble,
    pairs: Preferences,
    players: tuple[Debater, Debater],
    seed: int,
    *,
    upfront: bool = False,
    confuser: Debater | None = None,
) -> dict[str, Debate]:
    """Debates on N pairs by setting, the preferred action being player 1's.

    ``alone``: the advocate of the preferred action shows all items, half of them if ``upfront``. ``itself``: its like
    argues for the rejected action; left out if ``upfront``. ``refuted``: a one-step search does. ``confused``: the
    confuser does, if there is one.

    Args:
        judge: before whom; it says how many items there are.
        pairs: what is debated.
        players: who argues for the preferred action, and who against it among its like.
        seed: of who begins.
        upfront: the advocate lays its half down before the other side answers.
        confuser: a debater for the rejected action, trained against the advocate.
    """
    state, good, bad = pairs.state, pairs.preferred, pairs.rejected
    one, two = players
    generator = torch.Generator(state.device).manual_seed(seed)
    held = {"alone": argue_alone(state, good, bad, one, judge.items // 2 if upfront else judge.items)}
    rivals = {"itself": None if upfront else two, "refuted": LookaheadDebater(judge), "confused": confuser}
    order: Order = "upfront" if upfront else "alternating"
    for setting, rival in rivals.items():
        if rival is not None:
            held[setting] = hold_debate(state, good, bad, one, rival, judge.items, order=order, generator=generator)
    return held
