"""What runs share: a trained reader."""

from __future__ import annotations

from pathlib import Path

from apps.lipreading.reader import Reader, ReaderConfig, make_reader, open_reader
from core.study import Context, Product


class ReaderProduct(Product):
    """A reader that has learnt."""

    reader: ReaderConfig
    """How."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"reader: {self.reader.method.name}"

    def make(self, directory: Path, context: Context) -> None:
        """Train it."""
        make_reader(self.reader, directory, context.checkpoint, context.device, context.progress)

    def open(self, context: Context) -> Reader:
        """The reader, trained here and now if nobody has."""
        return open_reader(context.product(self), context.device)
