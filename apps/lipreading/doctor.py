"""Looks at recordings or at a pack before any training: what would make a reader fail, told in plain words."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from apps.lipreading.examination import Examined, examine_recording, examine_utterance, named
from core.errors import InputError
from core.seeds import stream
from simulators.lips.crop import Crop
from simulators.lips.pack import Pack, leaking_speakers
from simulators.lips.readers import Recording
from simulators.lips.sheets import FPS, LEAST_SIDE
from simulators.lips.video import FPS_TOLERANCE, LEAST_MOTION

Level = Literal["fine", "warning", "fault", "unknown"]

DARK, BRIGHT = 40.0, 215.0
"""Mean grey levels of the mouth, of 255."""
LEAST_SPREAD = 12.0
"""Standard deviation of grey levels within the mouth's picture."""
CENTRE = (0.3, 0.7)
"""Shares of the width and height between which the movement should lie."""
LEAST_SPEECH_MOTION = 1.0
"""Movement while words are spoken by movement in silence."""
LEAST_FACES = 0.8
"""Share of the looked-at frames in which a face is found."""
MOST_HEAD_MOTION = 0.15
"""Standard deviation of the face's middle by its width."""
KEPT = 500
"""Clips whose pictures are kept for the page; all of a corpus would fill the memory."""
NAMED = 8
"""Clips that a finding names."""

Report = Callable[[float, str], None]
V = TypeVar("V")


@dataclass(frozen=True)
class Finding:
    """One check over all clips.

    Attributes:
        check: its name.
        level: ``unknown`` where it could not be made.
        text: what was found.
        clips: some that it concerns.
        count: how many it concerns.
    """

    check: str
    level: Level
    text: str
    clips: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """The result.

    Attributes:
        source: what was looked at.
        kind: ``pack`` or the layout of the recordings.
        total: clips there are.
        findings: a line for each check.
        clips: those that were looked into.
        splits: clips in each split.
    """

    source: str
    kind: str
    total: int
    findings: list[Finding]
    clips: list[Examined]
    splits: dict[str, int]

    @property
    def worst(self) -> Level:
        """The worst level of all findings."""
        levels = {finding.level for finding in self.findings}
        return next((level for level in ("fault", "warning") if level in levels), "fine")


def examine_pack(
    pack: Pack, *, sample: int = 60, seed: int = 0, report: Report = lambda share, text: None
) -> Diagnosis:
    """Look at a pack.

    Args:
        pack: opened.
        sample: clips that are looked into, chosen at random; 0: all.
        seed: of the choice.
        report: is told how far it is.
    """
    chosen = _chosen(len(pack), sample, seed)
    clips = []
    for done, i in enumerate(chosen, start=1):
        clips.append(_light(examine_utterance(pack, i), done))
        report(done / len(chosen), f"{done} of {len(chosen)} clips")
    seen = [(u.split, u.speaker, u.sentence) for u in pack.utterances]
    findings = [
        *_per_clip(clips, recorded=False, corpus=str(pack.record.get("corpus", "")), nominal=pack.n_frames),
        _leakage(seen, leaking_speakers(pack.utterances), str(pack.record.get("split", ""))),
        _sentences(seen),
        _duplicates([(u.split, named(u.speaker, u.name), pack.checksum(i)) for i, u in enumerate(pack.utterances)]),
    ]
    return Diagnosis(str(pack.path), "pack", len(pack), findings, clips, pack.splits)


def examine_recordings(
    recordings: Sequence[Recording],
    source: str,
    kind: str,
    *,
    crop: Crop,
    height: int = 32,
    width: int = 48,
    frames: int = 75,
    problems: Sequence[str] = (),
    sample: int = 60,
    seed: int = 0,
    report: Report = lambda share, text: None,
) -> Diagnosis:
    """Look at recordings; what a clip suffers from is a finding, not an error.

    Args:
        recordings: of a reader; without a sentence where there is no table.
        source: what they are called.
        kind: of layout.
        crop: finds the mouth.
        height: of the cut, pixels.
        width: of the cut, pixels.
        frames: that a clip should have, as alignments of shorter ones are made for so many.
        problems: why the reader refused the folder.
        sample: clips that are looked into, chosen at random; 0: all.
        seed: of the choice.
        report: is told how far it is.
    """
    chosen = _chosen(len(recordings), sample, seed)
    clips = []
    for done, i in enumerate(chosen, start=1):
        clips.append(_light(examine_recording(recordings[i], crop, (height, width), frames), done))
        report(done / len(chosen), f"{done} of {len(chosen)} clips")
    seen = [(r.split, r.speaker, r.sentence) for r in recordings]
    findings = [Finding("layout", "fault", text, count=1) for text in problems] or [
        Finding("layout", "fine", f"{kind}: {len(recordings):,} clips, each with its sentence")
    ]
    findings += _per_clip(clips, recorded=True, corpus=kind, nominal=frames)
    if not problems:
        findings += [_leakage(seen, leaking_speakers(recordings), ""), _sentences(seen)]
    findings.append(_duplicates(_checksums(recordings)))
    return Diagnosis(source, kind, len(recordings), findings, clips, dict(Counter(r.split for r in recordings)))


def _light(clip: Examined, number: int) -> Examined:
    if number > KEPT:
        clip.scene = clip.cut = None
    return clip


def _per_clip(clips: Sequence[Examined], *, recorded: bool, corpus: str, nominal: int) -> list[Finding]:
    good = [clip for clip in clips if "readable" not in clip.faults]
    size = Counter(clip.size for clip in good).most_common(1)
    pixels = size[0][0] if size else None
    shape = "x".join(map(str, pixels or ()))
    found = [
        _faults("readable", clips, f"all {len(clips)} clips that were looked into can be decoded"),
        _faults("rate", good, f"{FPS:g} frames per second, within {FPS_TOLERANCE:.0%}"),
        _lengths(good, nominal, varied=corpus == "lrw1000"),
        _measured(
            "size",
            [(c.name, c.size) for c in good],
            lambda found: found != pixels,
            f"{shape} pixels each",
            f"are not of {shape} pixels, as most are",
        ),
    ]
    found += _faces(good) if recorded else [_faults("face", good, "a mouth in every frame, by the table", "warning")]
    return found + _pictures(good) + _alignments(good, silence=corpus != "lrw")


def _lengths(clips: Sequence[Examined], nominal: int, *, varied: bool) -> Finding:
    """Clips of another number of frames than a pack has; words of LRW-1000 have lengths of their own."""
    counts = [(clip.name, clip.frames) for clip in clips]
    known = [count for _, count in counts if count is not None]
    if any(count > nominal for count in known):
        text = f"have more than {nominal} frames; prepare refuses them, but for a larger --frames"
        return _measured("length", counts, lambda count: count > nominal, "", text)
    spread = f"{min(known)} to {max(known)} frames, padded to {nominal}" if known else ""
    return _measured(
        "length",
        counts,
        lambda count: count < nominal and not varied,
        spread if varied else f"{nominal} frames each",
        f"have fewer than {nominal} frames; they are padded with their last one",
    )


def _faces(clips: Sequence[Examined]) -> list[Finding]:
    sized = [clip.face for clip in clips if clip.face is not None]
    narrow = min((clip.mouth[0] for clip in clips if clip.mouth is not None), default=0.0)
    wide = f"; faces are {min(sized):.0f} to {max(sized):.0f} pixels wide" if sized else ""
    return [
        _faults(
            "face", clips, f"a mouth in every clip{wide}" if sized else "every clip has a cut; no face was looked for"
        ),
        _measured(
            "face seen",
            [(c.name, c.faces) for c in clips],
            lambda share: share < LEAST_FACES,
            "the face is found throughout",
            f"show a face in fewer than {LEAST_FACES:.0%} of the frames looked at",
        ),
        _measured(
            "head",
            [(c.name, c.head) for c in clips],
            lambda spread: spread > MOST_HEAD_MOTION,
            "heads keep still",
            "have a head that moves; one box may lose the mouth, landmarks do not",
        ),
        _measured(
            "mouth size",
            [(c.name, c.mouth) for c in clips],
            lambda mouth: min(mouth) < 1.25 * LEAST_SIDE,
            f"cuts are at least {narrow:.0f} pixels wide",
            f"have a mouth of hardly more than {LEAST_SIDE} pixels, the least",
        ),
    ]


def _pictures(clips: Sequence[Examined]) -> list[Finding]:
    low, high = CENTRE
    grey = [clip.brightness for clip in clips if clip.brightness is not None]
    moving = [clip for clip in clips if (clip.motion or 0.0) >= LEAST_MOTION]
    if any("crop" in clip.faults for clip in clips):
        crop = _faults("crop", clips, "")
    else:
        crop = _measured(
            "crop",
            [(c.name, c.centre) for c in moving],
            lambda centre: not all(low <= share <= high for share in centre),
            "what moves is in the middle of the picture",
            "move beside the middle of the picture: is this the mouth?",
        )
    return [
        crop,
        _faults("black", clips, "no picture is of one grey level"),
        _measured(
            "brightness",
            [(c.name, c.brightness) for c in clips],
            lambda mean: not DARK <= mean <= BRIGHT,
            f"mean grey levels {min(grey):.0f} to {max(grey):.0f} of 255" if grey else "",
            f"have a mean grey level outside {DARK:.0f} to {BRIGHT:.0f} of 255",
        ),
        _measured(
            "contrast",
            [(c.name, c.spread) for c in clips],
            lambda spread: spread < LEAST_SPREAD,
            "lips stand out from the skin",
            f"have grey levels that spread by less than {LEAST_SPREAD:.0f}",
        ),
        _measured(
            "movement",
            [(c.name, c.motion) for c in clips],
            lambda motion: motion < LEAST_MOTION,
            "the mouth moves in every clip",
            "stand still: nothing is spoken, or one frame is repeated",
        ),
    ]


def _alignments(clips: Sequence[Examined], *, silence: bool) -> list[Finding]:
    told = [clip for clip in clips if clip.words is not None or "alignment" in clip.faults]
    if not told:
        return [Finding("alignment", "unknown", "there are no word alignments")]
    # Around a word of LRW other words are spoken, not silence.
    timed = told if silence else []
    ratios = [clip.speech_motion for clip in timed if clip.speech_motion is not None]
    mean = sum(ratios) / len(ratios) if ratios else 0.0
    return [
        _faults("alignment", told, f"{len(told)} alignments fit their clips and sentences"),
        _measured(
            "timing",
            [(c.name, c.speech_motion) for c in timed],
            lambda ratio: ratio < LEAST_SPEECH_MOTION,
            f"the picture changes {mean:.1f} times as much during words as in silence",
            "change less during words than in silence: their alignments may be shifted",
        ),
    ]


def _measured(
    check: str,
    values: Sequence[tuple[str, V | None]],
    bad: Callable[[V], bool],
    fine: str,
    text: str,
) -> Finding:
    """A warning about clips whose value is bad; those without one do not count."""
    known = [(name, value) for name, value in values if value is not None]
    if not known:
        return Finding(check, "unknown", "could not be measured")
    found = [name for name, value in known if bad(value)]
    if not found:
        return Finding(check, "fine", fine)
    return Finding(check, "warning", f"{len(found)} of {len(known)} clips {text}", tuple(found[:NAMED]), len(found))


def _faults(check: str, clips: Sequence[Examined], fine: str, level: Level = "fault") -> Finding:
    """Clips that have a fault of this name, with the first one's message."""
    if not clips:
        return Finding(check, "unknown", "could not be looked at")
    found = [clip for clip in clips if check in clip.faults]
    if not found:
        return Finding(check, "fine", fine)
    text = f"{len(found)} of {len(clips)} clips: {found[0].faults[check]}"
    return Finding(check, level, text, tuple(clip.name for clip in found[:NAMED]), len(found))


def _leakage(seen: Sequence[tuple[str, str, str]], leaking: Sequence[str], split: str) -> Finding:
    if not any(speaker for _, speaker, _ in seen):
        return Finding("speakers", "unknown", "nobody says who speaks: the test may be of people that were trained on")
    if not any(name == "test" for name, _, _ in seen):
        return Finding("speakers", "unknown", "there is no test split")
    if not leaking:
        return Finding("speakers", "fine", "nobody in the test split is trained on")
    text = f"{len(leaking)} speakers of the test split are also trained on: the figures are of known speakers"
    return Finding("speakers", "fault" if split == "unseen" else "warning", text, tuple(leaking[:NAMED]), len(leaking))


def _sentences(seen: Sequence[tuple[str, str, str]]) -> Finding:
    held = [text for split, _, text in seen if split != "train"]
    trained = {text for split, _, text in seen if split == "train"}
    if not held or not trained:
        return Finding("sentences", "unknown", "there is one split")
    known = sum(text in trained for text in held)
    return Finding(
        "sentences", "fine", f"{known:,} of {len(held):,} sentences outside the training are spoken in it too"
    )


def _duplicates(clips: Sequence[tuple[str, str, int | str]]) -> Finding:
    by_content: dict[int | str, list[tuple[str, str]]] = {}
    for split, name, content in clips:
        by_content.setdefault(content, []).append((split, name))
    twice = [found for found in by_content.values() if len(found) > 1]
    if not twice:
        return Finding("duplicates", "fine", "no recording stands twice")
    crossing = [found for found in twice if len({split for split, _ in found}) > 1]
    shown = (crossing or twice)[:NAMED]
    text = f"{len(twice)} recordings stand twice" + (f", {len(crossing)} of them in two splits" if crossing else "")
    return Finding("duplicates", "fault" if crossing else "warning", text, tuple(f[0][1] for f in shown), len(twice))


def _checksums(recordings: Sequence[Recording]) -> list[tuple[str, str, int | str]]:
    """Only files of one size can be the same; reading all of a corpus would take hours."""
    sizes = [r.path.stat().st_size if r.path.is_file() else -1 for r in recordings]
    common = Counter(sizes)
    found: list[tuple[str, str, int | str]] = []
    for recording, size in zip(recordings, sizes, strict=True):
        alone = size < 0 or common[size] == 1
        content = f"{recording.path}:{recording.first}" if alone else _digest(recording.path)
        found.append((recording.split, named(recording.speaker, recording.name), content))
    return found


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream_:
            return hashlib.file_digest(stream_, "sha256").hexdigest()
    except OSError:
        return str(path)


def _chosen(count: int, sample: int, seed: int) -> list[int]:
    if sample < 0:
        raise InputError(f"sample = {sample}: must be at least 0")
    generator = torch.Generator().manual_seed(stream(seed, "doctor"))
    order = torch.randperm(count, generator=generator).tolist()
    return sorted(order[:sample] if sample else order)
