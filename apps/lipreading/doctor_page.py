"""A diagnosis as one page with a contact sheet, and as JSON."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from apps.lipreading.doctor import Diagnosis
from apps.lipreading.examination import Examined
from core import files
from core.errors import require
from simulators.lips.sheets import FPS, Frames

PAGE, RECORD = "doctor.html", "doctor.json"
SHOWN = 24
"""Clips on the contact sheet, those with faults first."""
STRIP = 12
"""Frames of a clip on it."""
SCENE_WIDTH = 240
WORDS = {"fine": "fine", "warning": "look here", "fault": "fault", "unknown": "not known"}
_MEASURES = (
    "fps", "frames", "size", "faces", "face", "head", "mouth", "brightness", "spread", "motion", "centre",
    "speech_motion",
)  # fmt: skip


def doctor_page(diagnosis: Diagnosis) -> str:
    """The diagnosis as self-contained HTML."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("doctor_page.html.jinja").read_text(encoding="utf-8")
    )
    return page.render(d=diagnosis, clips=[_card(clip) for clip in _shown(diagnosis)], words=WORDS)


def doctor_record(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis as JSON data: findings, and the measures of each clip that was looked into."""
    return {
        "source": diagnosis.source,
        "kind": diagnosis.kind,
        "worst": diagnosis.worst,
        "clips": diagnosis.total,
        "looked_into": len(diagnosis.clips),
        "splits": diagnosis.splits,
        "findings": [vars(finding) for finding in diagnosis.findings],
        "measures": [
            {"name": clip.name, "sentence": clip.sentence, "faults": clip.faults}
            | {name: getattr(clip, name) for name in _MEASURES}
            for clip in diagnosis.clips
        ],
    }


def write_doctor(folder: Path, diagnosis: Diagnosis) -> None:
    """Write page and JSON atomically."""
    files.write(folder / PAGE, doctor_page(diagnosis))
    files.write_json(folder / RECORD, doctor_record(diagnosis))


def _shown(diagnosis: Diagnosis) -> list[Examined]:
    named = {name for finding in diagnosis.findings if finding.level in ("warning", "fault") for name in finding.clips}
    return sorted(diagnosis.clips, key=lambda clip: (not clip.faults, clip.name not in named))[:SHOWN]


def _card(clip: Examined) -> dict[str, Any]:
    facts = []
    if clip.frames is not None:
        facts.append(f"{clip.frames} frames" + (f" at {clip.fps:.4g} per second" if clip.fps else ""))
    if clip.face is not None:
        facts.append(f"face {clip.face:.0f} px")
    if clip.mouth is not None:
        facts.append(f"mouth {clip.mouth[0]:.0f}x{clip.mouth[1]:.0f} px")
    if clip.brightness is not None:
        facts.append(f"grey {clip.brightness:.0f}")
    if clip.speech_motion is not None:
        facts.append(f"moves {clip.speech_motion:.1f} times as much in words as in silence")
    strip, labels = _strip(clip) if clip.cut is not None else ("", [])
    return {
        "name": clip.name,
        "sentence": clip.sentence,
        "facts": ", ".join(facts),
        "faults": list(clip.faults.values()),
        "scene": _scene(clip) if clip.scene is not None else "",
        "strip": strip,
        "labels": labels,
    }


def _strip(clip: Examined) -> tuple[str, list[dict[str, str]]]:
    """Frames spread over the words, else over the clip, side by side; and when each is and what is said then."""
    assert clip.cut is not None
    count = len(clip.cut)
    start, end = (clip.words.onset, clip.words.offset) if clip.words is not None else (0, count)
    chosen = np.clip(np.linspace(start, max(start, end - 1), STRIP).round().astype(int), 0, count - 1)
    labels = []
    for i in chosen.tolist():
        spoken = clip.words.words if clip.words is not None else ()
        word = next((w.text for w in spoken if w.start <= i + 0.5 < w.end), "")
        labels.append({"time": f"{i / FPS:.2f} s", "word": word})
    gap = np.full((clip.cut.shape[1], 1), 255, dtype=np.uint8)
    pieces = [piece for frame in clip.cut[chosen] for piece in (frame, gap)][:-1]
    return _jpeg(np.concatenate(pieces, axis=1)), labels


def _scene(clip: Examined) -> str:
    image, draw = require("PIL.Image", "lipreading"), require("PIL.ImageDraw", "lipreading")
    assert clip.scene is not None
    picture = image.fromarray(clip.scene).convert("RGB")
    scale = SCENE_WIDTH / picture.width
    picture = picture.resize((SCENE_WIDTH, max(1, round(picture.height * scale))))
    if clip.box is not None:
        draw.Draw(picture).rectangle([x * scale for x in clip.box], outline=(255, 170, 0), width=2)
    return _encoded(picture)


def _jpeg(frames: Frames) -> str:
    return _encoded(require("PIL.Image", "lipreading").fromarray(frames))


def _encoded(picture: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
