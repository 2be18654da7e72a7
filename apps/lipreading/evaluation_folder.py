"""The folder of an evaluation: numbers of each clip, all transcripts, and two figures."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from apps.lipreading.alignment import slots_right
from apps.lipreading.calibration import CALIBRATION, Abstention, Reliability, abstention, reliability
from apps.lipreading.confusion import confusion, word_confusion
from apps.lipreading.evaluation import Reading
from apps.lipreading.metrics import character_errors, exact, word_errors
from apps.lipreading.reader import MODEL
from core import files
from core.errors import InputError
from core.study import Row
from simulators.lips.grammar import Grammar

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

RESULTS, HYPOTHESES, SUMMARY, FIGURES = "results.nc", "hypotheses.csv", "summary.json", "figures"


def dataset(reading: Reading, grammar: Grammar | None = None) -> xr.Dataset:
    """Numbers by clip, by slot of the grammar, by viseme and by bin of confidence."""
    characters = character_errors(reading.hypotheses, reading.references)
    words = word_errors(reading.hypotheses, reading.references)
    by_clip = {
        "character_edits": characters.edits.numpy(),
        "characters": characters.length.numpy(),
        "cer": characters.rate.numpy(),
        "word_edits": words.edits.numpy(),
        "words": words.length.numpy(),
        "wer": words.rate.numpy(),
        "exact": exact(reading.hypotheses, reading.references).numpy(),
        "cer_sampled": character_errors(reading.sampled, reading.references).rate.numpy(),
        "entropy": np.array(reading.entropy),
    }
    data = xr.Dataset(
        {name: ("utterance", values) for name, values in by_clip.items()},
        coords={"utterance": np.array(reading.names, dtype=object)},
    )
    data["entropy"].attrs.update(units="nat", long_name="of a symbol, mean over a sample")
    for name in ("references", "hypotheses", "speakers"):
        data[name.removesuffix("s").replace("hypothese", "hypothesis")] = (
            "utterance",
            np.array(getattr(reading, name), dtype=object),
        )
    if reading.in_grammar is not None:
        data["in_grammar"] = ("utterance", np.array(reading.in_grammar))
    if grammar is not None:
        data = data.assign_coords(slot=list(grammar.slots))
        data["slot_right"] = (("utterance", "slot"), slots_right(reading.hypotheses, reading.references).numpy())
    if reading.pronounced:
        found = confusion(reading.hypotheses, reading.references)
        data = data.assign_coords(viseme=list(found.visemes), read_viseme=list(found.visemes))
        data["viseme_confusion"] = (("viseme", "read_viseme"), found.counts)
    if bins := _reliability(reading):
        data["mean_confidence"] = ("bin", bins.confidence)
        data["accuracy"] = ("bin", bins.accuracy, {"long_name": f"share of the {reading.unit}s that is right"})
        data["count"] = ("bin", bins.count)
        data.attrs["calibration_error"] = bins.error
    return data


def table(reading: Reading) -> str:
    """All transcripts as CSV, a clip a row."""
    characters = character_errors(reading.hypotheses, reading.references)
    words = word_errors(reading.hypotheses, reading.references)
    columns: dict[str, list[Any]] = {
        "utterance": reading.names,
        "speaker": reading.speakers,
        "reference": reading.references,
        "hypothesis": reading.hypotheses,
        "sampled": reading.sampled,
        "character_edits": characters.edits.tolist(),
        "characters": characters.length.tolist(),
        "word_edits": words.edits.tolist(),
        "words": words.length.tolist(),
    }
    if reading.in_grammar is not None:
        columns["in_grammar"] = [int(x) for x in reading.in_grammar]
    if reading.confidence:
        columns["mean_confidence"] = [f"{x.mean():.6g}" if len(x) else "" for x in reading.confidence]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def make_folder(folder: Path) -> None:
    """Make the folder of an evaluation, which is worth doing before hours of reading.

    Raises:
        InputError: it cannot be made.
    """
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: {(error.strerror or str(error)).lower()}") from error


def write_evaluation(
    folder: Path, reading: Reading, rows: list[Row], asked: dict[str, Any], grammar: Grammar | None = None, **attrs: Any
) -> None:
    """Write all files of an evaluation.

    Args:
        folder: is made if need be.
        reading: of the clips.
        rows: of the table.
        asked: what the evaluation depends on.
        grammar: whose slots are told apart, where all references are its sentences.
        attrs: of the dataset.

    Raises:
        InputError: the folder cannot be written.
    """
    # Figures bring matplotlib.
    from apps.lipreading.figures.confusion import draw_confusion, draw_reliability

    data = dataset(reading, grammar).assign_attrs(**attrs)
    make_folder(folder)
    files.write(folder / RESULTS, lambda path: data.to_netcdf(path, engine="h5netcdf"))
    files.write(folder / HYPOTHESES, table(reading))
    summary: dict[str, Any] = {"asked": asked, "table": [asdict(row) for row in rows]}
    if reading.pronounced:
        summary["words"] = asdict(word_confusion(reading.hypotheses, reading.references))
        _write_figure(folder, "confusion", draw_confusion(confusion(reading.hypotheses, reading.references)))
    if bins := _reliability(reading):
        _write_figure(folder, "reliability", draw_reliability(bins, reading.unit))
    files.write_json(folder / SUMMARY, summary)


def write_calibration(folder: Path, reading: Reading, samples: int, most: int, data: str) -> None:
    """Keep beside a model how sure it was of which words, and which were right; see ``open_abstention``.

    Args:
        folder: of the model.
        reading: by ``mbr``.
        samples: of each clip.
        most: words of a clip that are ever shown.
        data: that were read, for people.

    Raises:
        InputError: not read by ``mbr``.
    """
    if reading.unit != "word":
        raise InputError("--calibrate: needs confidences of words; allowed with --decode mbr")
    record = {
        "weights": _fingerprint(folder / MODEL),
        "data": data,
        "samples": samples,
        "most": most,
        "confidence": [x.tolist() for x in reading.confidence],
        "right": [x.tolist() for x in reading.right],
    }
    files.write_json(folder / CALIBRATION, record)


def open_abstention(folder: Path, error_rate: float, risk: float = 0.1) -> tuple[Abstention, int]:
    """From which confidence a word of a model may be shown, and how many samples the confidence is of.

    Raises:
        InputError: the model was not calibrated, or trained again since, the file is damaged, or a rate or risk is
            outside (0, 1).
    """
    path = folder / CALIBRATION
    if not path.exists():
        raise InputError(f"{path}: no such file; evaluate {folder} --decode mbr --calibrate writes it")
    record = files.read_json(path, ("weights", "samples", "most", "confidence", "right"))
    if record["weights"] != _fingerprint(folder / MODEL):
        raise InputError(f"{path}: is of other weights than {MODEL}; evaluate --decode mbr --calibrate again")
    try:
        sure = [[float(x) for x in clip] for clip in record["confidence"]]
        right = [list(clip) for clip in record["right"]]
        most, samples = int(record["most"]), int(record["samples"])
    except (TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not sure or [len(x) for x in sure] != [len(x) for x in right]:
        raise _damaged(path, "confidence, right: must be of the same words of at least one clip")
    if not all(0 <= x <= 1 for clip in sure for x in clip):
        raise _damaged(path, "confidence: must be from 0 to 1")
    if not all(isinstance(x, bool) for clip in right for x in clip):
        raise _damaged(path, "right: must be true or false")
    if most < 1 or samples < 2:
        raise _damaged(path, f"most {most}, samples {samples}: must be at least 1, and 2")
    return abstention(sure, right, error_rate, risk=risk, most=most), samples


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: is damaged ({why}); evaluate --decode mbr --calibrate again")


def _reliability(reading: Reading) -> Reliability | None:
    if sum(map(len, reading.confidence)) < 2:
        return None
    return reliability(np.concatenate(reading.confidence), np.concatenate(reading.right))


def _write_figure(folder: Path, name: str, drawing: Drawing) -> None:
    for kind in ("png", "pdf"):
        draw = lambda path, kind=kind: drawing.savefig(path, format=kind, dpi=150, facecolor="white")  # noqa: E731
        files.write(folder / FIGURES / f"{name}.{kind}", draw)


def _fingerprint(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
