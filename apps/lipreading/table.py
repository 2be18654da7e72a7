"""The rows of the table, and what its numbers mean."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr

from apps.lipreading.evaluation import Reading, rates, slot_rates
from apps.lipreading.evidence import MEASURES, Evidence
from apps.lipreading.gradients import Signal, jackknife, standard_error
from apps.lipreading.grammars import GRAMMARS
from apps.lipreading.metrics import Errors, corpus_rate, texts
from core.sequence.batch import TokenBatch
from core.study import Row, Undecided
from simulators.lips import alphabet

START = "the reader"
"""Method of the rows of what an experiment starts from."""
SLOPE_NOTE = 0.02
"""Share of the error rate that the last look of cross-entropy still took off, above which the notes warn."""
MEANING = (
    "CER, WER: edits of characters or words over those of all references (corpus averages); exact: share of the clips "
    "without an error. Greedy transcripts take the most probable symbol; sampled ones are one draw a clip at "
    "temperature 1, from random numbers that all models share.",
    "Objectives start from the same weights and see as many batches, of the same clips with the same noise in the same "
    "order; they differ in the transcripts that they sample of a clip, and one with minibatches takes that many "
    "optimiser steps a batch. Seeds differ in the order of the clips, noise and samples. Intervals of objectives are "
    "95 % t intervals over these seeds: they hold for this reader, these test clips and these draws of transcripts, "
    "which all seeds share, and are too narrow for others. Intervals of the reader are bootstrap intervals over clips, "
    "not over speakers.",
    "A policy loss with several weights to choose from has the one with the smallest error rate of sampled transcripts "
    "of validation clips in one fork of a seed of its own; that choice is noisy, close weights are not told apart, and "
    "it is not made for greedy transcripts. The learning rate is given, for all objectives the same.",
    "Sampled transcripts also improve when a policy only becomes surer, as it would at a lower temperature without any "
    "training; a smaller error rate of theirs alone does not show that a model reads better.",
    "Error rates by character fall while whole sentences do not improve, where an objective hedges between words that "
    "look alike: all columns are shown for that reason.",
)


def rows_of(evidence: Evidence) -> list[Row]:
    """All rows."""
    rows = [row for name in evidence.experiments for row in _experiment(evidence, name)]
    return rows + [row for name, data in evidence.gradients.items() for row in _gradients(name, data)]


def reading_of(data: xr.Dataset, which: str = "greedy", grammar: str | None = None) -> Reading:
    """Transcripts of a result as texts with the probabilities of their symbols."""
    tokens = {name: torch.from_numpy(data[name].values.astype(np.int64)) for name in ("reference", which, "sampled")}
    known = GRAMMARS[grammar] if grammar else None
    return Reading(
        names=[str(i) for i in range(data.sizes["utterance"])],
        speakers=[str(n) for n in data["speaker"].values],
        references=texts(tokens["reference"]),
        hypotheses=texts(tokens[which]),
        sampled=texts(tokens["sampled"]),
        entropy=[math.nan],
        in_grammar=None if known is None else known.parses(tokens[which]).tolist(),
    )


def batch_of(data: xr.Dataset, which: str, rows: slice = slice(None)) -> TokenBatch:
    """``reference``, ``greedy`` or ``sampled`` transcripts of a result, as answers to as many clips."""
    tokens = torch.from_numpy(data[which].values[rows].astype(np.int64))
    ended = (tokens == alphabet.EOS).cumsum(1) - (tokens == alphabet.EOS).long()
    return TokenBatch(tokens, ended == 0, torch.arange(len(tokens)))


def _experiment(evidence: Evidence, name: str) -> Iterator[Row]:
    grammar = evidence.grammars.get(name)
    reading = reading_of(evidence.readings[name], grammar=grammar)
    yield from rates(reading, scenario=name, method=START)
    if grammar:
        yield from slot_rates(reading, GRAMMARS[grammar], scenario=name, method=START)
    yield from _tempered(name, evidence.readings[name])
    for method in evidence.methods(name):
        for measure in MEASURES:
            yield _row(evidence, name, method, measure)
        yield Row(name, method, "weight", "1", evidence.weight(name, method))
    methods = evidence.methods(name)
    for method in methods[1:]:
        for measure in MEASURES:
            try:
                found = evidence.difference(name, method, methods[0], measure)
            except Undecided:
                continue
            yield Row(name, method, f"{measure} less {methods[0]}", "1", found.mean, found.low, found.high, found.n)


def _tempered(name: str, data: xr.Dataset) -> Iterator[Row]:
    characters = torch.from_numpy(data["characters"].values.astype(np.int64))
    for temperature in data["temperature"].values if "tempered_edits" in data else ():
        edits = torch.from_numpy(data["tempered_edits"].sel(temperature=temperature).values.astype(np.int64))
        found = corpus_rate(Errors(edits, characters))
        method = f"{START}, temperature {temperature:g}"
        yield Row(name, method, "CER sampled", "1", found.mean, found.low, found.high, found.n)


def _row(evidence: Evidence, name: str, method: str, measure: str) -> Row:
    found = evidence.interval(name, method, measure)
    if found.n < 2:
        return Row(name, method, measure, "1", found.mean, n=1)
    return Row(name, method, measure, "1", found.mean, found.low, found.high, found.n)


def _gradients(name: str, data: xr.Dataset) -> Iterator[Row]:
    for method in data["method"].values:
        whole, left = jackknife(data, str(method))
        n = len(left)
        for metric, value in (("SNR", "snr"), ("cosine", "cosine"), ("cosine of one repeat", "one_repeat")):
            yield _jackknifed(f"{name}, gradients", str(method), metric, whole, left, value, n)


def _jackknifed(scenario: str, method: str, metric: str, whole: Signal, left: list[Signal], value: str, n: int) -> Row:
    mean = float(getattr(whole, value))
    error = standard_error([getattr(x, value) for x in left])
    if not math.isfinite(mean) or not math.isfinite(error):
        return Row(scenario, method, metric, "1", None, n=n)
    return Row(scenario, method, metric, "1", mean, mean - 1.96 * error, mean + 1.96 * error, n)


def notes_of(evidence: Evidence) -> list[str]:
    """What the numbers mean, what was left out, and whether the readers had stopped improving."""
    notes = list(MEANING)
    for name, data in evidence.readings.items():
        if (slope := last_slope(data)) is not None and evidence.methods(name):
            updates, share = slope
            warning = (
                "; it was still improving, and further cross-entropy is then hard to beat" if share > SLOPE_NOTE else ""
            )
            notes.append(
                f"{name}: over its last {updates} updates the reader took {share:.1%} off its greedy error rate on "
                f"validation clips{warning}."
            )
    if evidence.gradients:
        notes.append(
            "Gradients are of the output layer and the recurrent weights of the decoder's upper layer, for the same "
            "clips with the same noise in all repeats, and for as many transcripts with each estimator. SNR: squared "
            "length of the mean gradient over the variance of one repeat, cosines with the mean gradient of the last "
            "estimator; from products of different repeats, so that noise adds nothing (a cosine may come out above "
            "1). Intervals: mean and 1.96 jackknife standard errors over repeats. A large SNR alone says little: short "
            "windows have it, and point elsewhere."
        )
    notes += edge_notes(evidence)
    notes += [nearest_note(name, data) for name, data in evidence.gradients.items()]
    notes += [f"{name} was left out: {reason}." for name, reason in evidence.absent.items()]
    return notes


def edge_notes(evidence: Evidence) -> list[str]:
    """Which chosen weights are the smallest or largest that were tried, so that a better one may lie beyond."""
    notes = []
    for name in evidence.experiments:
        tried = {method: weights for (where, method), weights in evidence.trials.items() if where == name}
        chosen = {method: evidence.weight(name, method) for method in tried}
        edges = [f"{m} ({w:g})" for m, w in chosen.items() if w in (min(tried[m]), max(tried[m]))]
        if edges:
            notes.append(
                f"{name}: the chosen weight is the smallest or largest that was tried for {', '.join(edges)}; a better "
                "one may lie beyond."
            )
    return notes


def nearest_note(name: str, data: xr.Dataset) -> str:
    """Which estimators' single gradients point nearest to the reference's, with and without comparing transcripts."""
    found = {str(m): jackknife(data, str(m))[0].one_repeat for m in data["method"].values[:-1]}
    known = {method: value for method, value in found.items() if math.isfinite(value)}
    if not known:
        return f"{name}: no estimator's signal is told from noise."
    grouped = set(str(data.attrs.get("grouped", "")).split("; "))
    best = max(known, key=lambda method: known[method])
    alone = max((m for m in known if m not in grouped), key=lambda method: known[method], default=best)
    also = "" if alone == best else f"; of those that sample a clip once, {alone} ({known[alone]:.2f})"
    return (
        f"{name}: the gradient of one repeat is expected to point nearest to the reference's mean with {best} "
        f"({known[best]:.2f}){also}."
    )


def last_slope(data: xr.Dataset) -> tuple[int, float] | None:
    """Updates between the last two looks at validation clips, and the share of the error rate that they took off."""
    if data.sizes.get("look", 0) < 2:
        return None
    updates, rates_seen = data["look_update"].values, data["look_greedy"].values
    if not rates_seen[-2]:
        return None
    return int(updates[-1] - updates[-2]), float(1 - rates_seen[-1] / rates_seen[-2])
