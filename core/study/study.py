"""A study: from a config to runs, from their results to claims, and the files that keep all of it."""

from __future__ import annotations

import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import ClassVar, Self

import yaml
from pydantic import Field

from core.configs import find_config
from core.errors import InputError
from core.study import loading
from core.study.analysis import Analysis, Summary
from core.study.config import Config, canonical, digest
from core.study.engines import open_engine
from core.study.progress import make_display
from core.study.provenance import version
from core.study.report import write_report
from core.study.results import Results
from core.study.run import Run, expand
from core.study.runner import Runner, resolve_device
from core.study.store import Store
from core.study.task import one_thread


class Study(Config):
    """What is compared with what; an application subclasses it with the fields of its YAML files.

    A study is run from its config alone, resumes where it was stopped, and gives the same numbers either way.
    """

    app: ClassVar[str]
    headline: ClassVar[tuple[str, ...]] = ()
    """The metrics that the terminal shows side by side; the report has them all. Empty: the terminal shows all."""

    study: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Name of the study."""
    description: str = ""
    """One line on what is compared."""
    takes: str = ""
    """How long it takes and on what, such as "4 min on 2 CPU cores"."""

    @abstractmethod
    def runs(self) -> list[Run]:
        """The runs of the study; their inputs need not be listed, and equal runs are done once."""

    @abstractmethod
    def analyse(self, results: Results) -> Analysis:
        """Table, claims, figures and data from the results; ``report`` calls it again, so it is pure too."""

    @classmethod
    def load(cls, config: str | Path, overrides: Sequence[str] = ()) -> Self:
        """The study in a YAML file, or in a packaged one of that name, with overrides such as ``"ppo.epochs=4"``.

        Raises:
            InputError: no such file, malformed YAML, an unknown key or an impossible value.
        """
        return loading.load(cls, find_config(cls.app, config), overrides)

    @property
    def hash(self) -> str:
        """Hash of what decides the numbers: everything but ``description`` and ``takes``."""
        return digest({k: v for k, v in canonical(self).items() if k not in ("description", "takes")})

    def cautions(self) -> list[str]:
        """What to know before anything runs, one line each, such as what is left out; printed to stderr."""
        return []

    def to_yaml(self) -> str:
        """The config as YAML that ``load`` reads."""
        return yaml.safe_dump(self.model_dump(mode="json", serialize_as_any=True), sort_keys=False, allow_unicode=True)

    def run(
        self,
        out: str | Path | None = None,
        *,
        device: str = "auto",
        engine: str = "local",
        address: str | None = None,
        workers: int | None = None,
        fresh: bool = False,
        quiet: bool = False,
    ) -> Summary:
        """Do the runs that are not finished, analyse all results and write the report.

        Args:
            out: folder of the study; ``runs/<study>`` by default.
            device: ``auto``, ``cpu`` or ``cuda``.
            engine: ``local`` processes, or ``ray``.
            address: of a running Ray cluster.
            workers: how many runs at once; 0 does them in this process; default one a core.
            fresh: remove what a study left in ``out`` and start anew.
            quiet: show no progress and no cautions.

        Raises:
            InputError: a folder that holds something else or is in use, an unknown device or engine.
            MissingExtra: Ray was asked for and is not installed.
            StudyError: runs failed; those that did not need them are finished and kept.
        """
        store = Store(Path(out or Path("runs") / self.study))
        store.refuse(self.study, self.hash, fresh=fresh)
        runs = expand(self.runs())
        if not quiet:
            for caution in self.cautions():
                print(caution, file=sys.stderr)
        try:
            with ExitStack() as held:
                with open_engine(engine, address, workers, len(runs), device) as workshop:
                    target = resolve_device(device, workshop.has_gpu())
                    held.enter_context(store.open(self.study, self.hash, self.to_yaml(), fresh=fresh))
                    with closing(make_display(quiet)) as display:
                        Runner(store, runs, workshop, target, display).run()
                return self._conclude(store)
        except KeyboardInterrupt:
            if not quiet:
                print("interrupted; the same command goes on from here", file=sys.stderr)
            raise

    def report(self, out: str | Path) -> Summary:
        """Analyse the stored results again and write the report anew; nothing is run.

        Raises:
            InputError: ``out`` holds no results of this study, or not all of them.
        """
        store = Store(Path(out))
        held = store.manifest()
        if held.get("config_hash") != self.hash:
            raise InputError(
                f"{out}: holds no study {self.study} with config hash {self.hash} (another config, or another version)"
            )
        missing = Results(store.root, self.runs()).missing()
        if missing:
            names = ", ".join(f"{run.label} [{run.hash}]" for run in missing[:3])
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError(f"{out}: not finished: {names}{more}; szilard {self.app} run goes on with them")
        with store.lock():
            return self._conclude(store)

    def _conclude(self, store: Store) -> Summary:
        started = time.monotonic()
        results = Results(store.root, self.runs())
        with one_thread():
            analysis = self.analyse(results)
        seconds = store.manifest()["seconds"] + time.monotonic() - started
        summary = Summary(
            study=self.study,
            config_hash=self.hash,
            version=version(),
            seconds=round(seconds, 3),
            claims=analysis.claims,
            table=analysis.table,
            out=store.root,
        )
        write_report(store, self.description, analysis, summary)
        return summary
