"""What is talked about and by which rules: a catalogue, its embeddings, and the conversation on them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from apps.crs.embedding import EmbeddingSettings, fit_embeddings
from apps.crs.evaluation import Cases
from apps.crs.training import split_pairs
from core.errors import InputError
from core.seeds import stream
from core.study import Config, Context, Product
from simulators.crs import Catalogue, Conversation, Embeddings, Rules
from simulators.crs.catalogue import Ids, Split
from simulators.crs.generated import PRESETS, generate
from simulators.crs.readers import read

NAME = r"^[A-Za-z0-9_.,%()+* =-]+$"
"""What problems and methods may be called."""
OPENINGS = 4
"""Dialogues of a held-out pair; the opening decides much of how long a dialogue is."""


class GeneratedSource(Config):
    """A generated catalogue; what is not given is the preset's."""

    kind: Literal["generated"] = "generated"
    """Kind of source."""
    preset: Literal["tiny", "small", "hard", "lastfm-like", "lastfm-star-sized"] = "small"
    """Sizes."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the catalogue."""
    n_users: int | None = None
    """Users."""
    n_items: int | None = None
    """Items."""
    n_types: int | None = None
    """Types of attributes."""
    n_values: int | None = None
    """Attributes of a type."""
    per_user: int | None = None
    """Interactions of a user."""
    taste_drift: float | None = None
    """Share of a taste that is new after the training interactions."""

    def open(self) -> Catalogue:
        """Generate it."""
        given = self.model_dump(exclude={"kind", "preset", "seed"}, exclude_none=True)
        return generate(replace(PRESETS[self.preset], **given), self.seed)


class StoredSource(Config):
    """A catalogue in files, in any layout that ``szilard crs data import`` reads."""

    kind: Literal["stored"] = "stored"
    """Kind of source."""
    path: Path
    """Folder."""
    layout: Literal["auto", "canonical", "scpr", "tcrs", "table"] = "auto"
    """Of the files."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the split, and of users where the files have none."""
    content: str | None = None
    """SHA-256 of the files, taken when they are there: results are those of the content, not of the name."""

    @model_validator(mode="before")
    @classmethod
    def _of_content(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.get("content") and Path(str(given.get("path"))).exists():
            given = {**given, "content": _content(Path(given["path"]))}
        return given

    def open(self) -> Catalogue:
        """Read it.

        Raises:
            InputError: it is not there, or is refused.
        """
        return read(self.path, self.layout, seed=self.seed)[0]


def _content(path: Path) -> str:
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(file.relative_to(path).as_posix().encode())
            found.update(file.read_bytes())
    return found.hexdigest()


Source = Annotated[GeneratedSource | StoredSource, Field(discriminator="kind")]


class Problem(Config):
    """A conversation and the dialogues to train, choose and test on."""

    name: str = Field(default="default", pattern=NAME)
    """Name in the report."""
    catalogue: Source = GeneratedSource()
    """What is talked about."""
    embedding: EmbeddingSettings = EmbeddingSettings()
    """How its embeddings are fitted, from the training split alone."""
    rules: Rules = Rules()
    """Of a dialogue."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the validation pairs that choose weights; learners train on the others."""
    limit: int | None = Field(default=None, ge=1)
    """Most test dialogues; all if not given."""
    shortcut: bool = False
    """When tested, every policy recommends as soon as all candidates fit into a list."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of embeddings, of the parts of the validation pairs, and of openings and luck."""

    def embeddings(self, catalogue: Catalogue, context: Context) -> Embeddings:
        """The embeddings, fitted once for all runs of a study."""
        product = EmbeddingProduct(catalogue=self.catalogue, settings=self.embedding, seed=self.seed)
        return Embeddings.load(context.product(product), catalogue)

    def open(self, context: Context) -> Opened:
        """The conversation and its dialogues."""
        catalogue = self.catalogue.open()
        return Opened(self, catalogue, self.embeddings(catalogue, context), context.device)


class Opened:
    """A problem with its tables on a device.

    Attributes:
        problem: what was opened.
        world: the conversation, about the pairs that learners train on.
    """

    def __init__(
        self, problem: Problem, catalogue: Catalogue, embeddings: Embeddings, device: torch.device | str
    ) -> None:
        self.problem = problem
        check_rules(problem.rules, catalogue)
        seed = stream(problem.seed, "held-out dialogues")
        trained, self._held = split_pairs(catalogue.pairs("valid"), problem.held_out, seed)
        self.world = Conversation(catalogue, embeddings, problem.rules, trained, device)

    def held_out(self) -> Cases:
        """Dialogues that choose among weights, each pair with several openings; no learner trains on them."""
        return self._cases(np.repeat(self._held, OPENINGS, axis=0), "held-out dialogues")

    def all_valid(self) -> Cases:
        """All validation dialogues, for rules that are tuned and learn nothing else."""
        return self._cases(self.world.catalogue.pairs("valid"), "validation dialogues")

    def cases(self, split: Split = "test") -> Cases:
        """Dialogues to report on."""
        return self._cases(self.world.catalogue.pairs(split), f"{split} dialogues", self.problem.limit)

    def _cases(self, pairs: Ids, purpose: str, limit: int | None = None) -> Cases:
        return Cases.of(self.world, pairs, stream(self.problem.seed, purpose), limit)


class EmbeddingProduct(Product):
    """The embeddings of a catalogue."""

    catalogue: Source
    """Whose."""
    settings: EmbeddingSettings
    """Of the fit."""
    seed: int
    """Of the fit."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.settings.method} embeddings"

    def make(self, directory: Path, context: Context) -> None:
        """Fit them."""
        catalogue = self.catalogue.open()
        found = fit_embeddings(
            catalogue,
            self.settings,
            stream(self.seed, "embeddings"),
            device=context.device,
            checkpoint=context.checkpoint / "embeddings.safetensors",
            progress=context.progress,
        )
        found.save(directory, catalogue, self.settings.model_dump(mode="json"))


def check_rules(rules: Rules, catalogue: Catalogue) -> None:
    """Refuse rules that a catalogue cannot be played by.

    Raises:
        InputError: questions about types of a catalogue with one type only.
    """
    if rules.question != "binary" and catalogue.n_types < 2:
        raise InputError(
            f"rules.question = {rules.question}: {catalogue.name} has {catalogue.n_types} type of attributes; must be "
            "binary, or a catalogue with types"
        )
