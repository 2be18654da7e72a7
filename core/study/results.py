"""The stored results of a study, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import xarray as xr

from core.study.run import Product, Run, expand
from core.study.store import Store, load_result


class Results(Mapping[Run, xr.Dataset]):
    """``results[run]`` is the result of a run or of one of its inputs; iteration goes over all of them.

    Attributes:
        directory: the folder of the study.
    """

    def __init__(self, directory: Path, runs: Iterable[Run]) -> None:
        self.directory = directory
        self._store = Store(directory)
        self._runs = expand(runs)
        self._loaded: dict[str, xr.Dataset] = {}

    def __getitem__(self, run: Run) -> xr.Dataset:
        """The result of ``run``.

        Raises:
            KeyError: the study has no such run, or it is not finished.
        """
        key = run.hash
        if key not in self._loaded:
            if key not in self._runs or not self._store.finished(key):
                raise KeyError(f"{run.label} [{key}]")
            self._loaded[key] = load_result(self._store.result(key))
        return self._loaded[key]

    def __contains__(self, run: object) -> bool:
        return isinstance(run, Run) and run.hash in self._runs and self._store.finished(run.hash)

    def __iter__(self) -> Iterator[Run]:
        return (run for key, run in self._runs.items() if self._store.finished(key))

    def __len__(self) -> int:
        return sum(map(self._store.finished, self._runs))

    def missing(self) -> list[Run]:
        """The runs that are not finished."""
        return [run for key, run in self._runs.items() if not self._store.finished(key)]

    def product(self, product: Product) -> Path:
        """The folder of a product that a run has made.

        Raises:
            KeyError: no run has made it.
        """
        folder = self.directory / "products" / product.hash
        if not folder.is_dir():
            raise KeyError(f"{product.label} [{product.hash}]")
        return folder
