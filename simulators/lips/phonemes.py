"""How the words of GRID are pronounced (ARPAbet, British names of the letters), and what of it is seen for how long."""

from __future__ import annotations

from core.errors import InputError

_SPOKEN = """
bin B IH N; lay L EY; place P L EY S; set S EH T; blue B L UW; green G R IY N; red R EH D; white W AY T; at AE T;
by B AY; in IH N; with W IH DH; a EY; b B IY; c S IY; d D IY; e IY; f EH F; g JH IY; h EY CH; i AY; j JH EY; k K EY;
l EH L; m EH M; n EH N; o OW; p P IY; q K Y UW; r AA R; s EH S; t T IY; u Y UW; v V IY; x EH K S; y W AY; z Z EH D;
zero Z IH R OW; one W AH N; two T UW; three TH R IY; four F AO R; five F AY V; six S IH K S; seven S EH V AH N;
eight EY T; nine N AY N; again AH G EH N; now N AW; please P L IY Z; soon S UW N
"""
PRONUNCIATIONS: dict[str, tuple[str, ...]] = {
    word: tuple(phonemes) for word, *phonemes in (entry.split() for entry in _SPOKEN.split(";"))
}
"""Phonemes of each word."""

_SEEN = """
P PBM 2.6; B PBM 2.0; M PBM 2.3; F FV 2.8; V FV 1.9; TH TH 2.5; DH TH 1.6; T TDN 2.2; D TDN 1.7; N TDN 1.9; L L 1.8;
S SZ 2.8; Z SZ 2.1; CH SH 2.9; JH SH 2.3; SH SH 2.9; K KG 2.3; G KG 1.8; R R 1.7; W W 1.8; Y Y 1.5; IY IY 2.6;
IH IH 1.6; EH EH 2.3; EY EY1 2.0 IY 1.6; AE AE 1.7; AA AA 3.2; AH AH 1.6; AO AO 2.8; UW UW 3.0; OW AO 1.8 UW 1.8;
AY AA 2.2 IH 1.8; AW AA 2.2 UW 2.2
"""
SEGMENTS: dict[str, tuple[tuple[str, float], ...]] = {
    phoneme: tuple(zip(rest[::2], map(float, rest[1::2]), strict=True))
    for phoneme, *rest in (entry.split() for entry in _SEEN.split(";"))
}
"""Visemes of each phoneme with their mean durations in frames of 40 ms; a diphthong has two."""


def segments(word: str) -> tuple[tuple[str, float], ...]:
    """Visemes of a word with their mean durations in frames of 40 ms.

    Raises:
        InputError: the word's pronunciation is not known.
    """
    if word not in PRONUNCIATIONS:
        raise InputError(f"word: {word!r} has no pronunciation; allowed: {', '.join(PRONUNCIATIONS)}")
    return tuple(part for phoneme in PRONUNCIATIONS[word] for part in SEGMENTS[phoneme])
