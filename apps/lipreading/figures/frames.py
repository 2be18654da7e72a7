"""What the simulated talker looks like."""

from __future__ import annotations

from matplotlib.figure import Figure

from apps.lipreading.simulation import contact_sheet, simulate
from simulators.lips.talking_mouth import TalkingMouth


def contact_sheet_of_speakers() -> Figure:
    """Pictures of four sentences by other speakers each."""
    return contact_sheet(simulate(TalkingMouth(mode="frames"), clips=4, speakers=4, seed=3), rows=4, columns=14)
