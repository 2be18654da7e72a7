"""The pictures of the study."""

from __future__ import annotations

from apps.lipreading.evidence import Evidence
from apps.lipreading.figures.confusion import of_reading, reliability_of
from apps.lipreading.figures.frames import contact_sheet_of_speakers
from apps.lipreading.figures.gradients import signal_and_direction
from apps.lipreading.figures.objectives import (
    differences,
    entropy_and_reward,
    error_by_update,
    kernels,
    weights,
    windows,
    with_entropy,
)
from apps.lipreading.figures.reading import attention, credit
from core.study import Figure

FEWEST_KERNELS = 4
"""Of which a map is drawn."""


def of_study(evidence: Evidence) -> list[Figure]:
    """Every picture that the results allow."""
    found: list[Figure] = []
    for place, name in enumerate(evidence.experiments):
        end = "" if place == 0 else f"_{place + 1}"
        found += _of_objectives(evidence, name, end) + _of_gradients(evidence, name, end)
    for place, name in enumerate(evidence.experiments):
        found += _of_reader(evidence, name, "" if place == 0 else f"_{place + 1}")
    frames = "Frames of the simulated talker: four sentences at equal distances in time."
    return [*found, Figure("frames", frames, contact_sheet_of_speakers)]


def _of_objectives(evidence: Evidence, name: str, end: str) -> list[Figure]:
    methods = evidence.methods(name)
    found = []
    many = bool(methods) and len(evidence.forks[name, methods[0]]) > 1
    if methods and all(d.sizes.get("look") for m in methods for d in evidence.forks[name, m].values()):
        caption = f"{name}: error rates of validation clips after the fork; lines: mean, bands: range over seeds."
        found.append(Figure(f"updates{end}", caption, lambda: error_by_update(evidence, name)))
    if many and len(methods) > 1:
        n = len(evidence.forks[name, methods[0]])
        caption = (
            f"{name}: differences from {methods[0]} on test clips, paired by seed; 95 % t intervals over {n} seeds, "
            "small dots: seeds."
        )
        found.append(Figure(f"differences{end}", caption, lambda: differences(evidence, name)))
    if any(experiment == name for experiment, _ in evidence.trials):
        caption = f"{name}: how the weight of each policy loss was chosen; rings: chosen."
        found.append(Figure(f"weights{end}", caption, lambda: weights(evidence, name)))
    if len(kernels(evidence, name)) >= FEWEST_KERNELS:
        caption = f"{name}: error rates of test clips by kernel and stride of the windows, mean over seeds."
        found.append(Figure(f"windows{end}", caption, lambda: windows(evidence, name)))
    if with_entropy(evidence, name):
        caption = (
            f"{name}: 1 - CER of sampled training transcripts against the policy's entropy, means over seeds and ten "
            "updates, and the law R = b - a exp(H). Both change with time, which alone makes part of the fit."
        )
        found.append(Figure(f"entropy{end}", caption, lambda: entropy_and_reward(evidence, name)))
    return found


def _of_gradients(evidence: Evidence, name: str, end: str) -> list[Figure]:
    if name not in evidence.gradients:
        return []
    data = evidence.gradients[name]
    caption = (
        f"{name}: gradients of the estimators at the reader before the fork, {data.sizes['repeat']} repeats on the "
        "same draws; bars: 1.96 jackknife standard errors."
    )
    return [Figure(f"gradients{end}", caption, lambda: signal_and_direction(data))]


def _of_reader(evidence: Evidence, name: str, end: str) -> list[Figure]:
    data = evidence.readings[name]
    found = []
    if "attention" in data:
        caption = f"{name}: where the decoder looks while it writes a transcript; dashed: where words begin."
        found.append(Figure(f"attention{end}", caption, lambda: attention(data)))
    caption = f"{name}: what each symbol of a sampled transcript earns, and the credit that windows give it."
    found.append(Figure(f"credit{end}", caption, lambda: credit(data)))
    if (drawing := of_reading(data)) is not None:
        caption = f"{name}: visemes of the test clips and what was read in their place, shares of each row."
        found.append(Figure(f"visemes{end}", caption, drawing))
    if (drawing := reliability_of(data)) is not None:
        caption = (
            f"{name}: probability of the most probable symbols and how often they are right; 95 % Wilson intervals, "
            "as if symbols were independent."
        )
        found.append(Figure(f"reliability{end}", caption, drawing))
    return found
