"""What a run may touch besides its inputs: its folder, its checkpoint, a device, shared products, a progress bar."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from core import files
from core.study import journal
from core.study.config import canonical
from core.study.provenance import provenance
from core.study.run import Product


@dataclass
class Context:
    """The surroundings of one run; a plain object that can be pickled.

    Attributes:
        directory: ``DIR/runs/<hash>``, or the working folder of a product.
        checkpoint: folder that survives a kill: a run resumes from what it finds there; removed when it is finished.
        device: where tensors belong.
        root: ``DIR``, the folder of the study.
        journal: the file that ``progress`` and ``log`` append to.
    """

    directory: Path
    checkpoint: Path
    device: torch.device
    root: Path
    journal: Path
    _reported: float = field(default=0.0, repr=False)

    def product(self, product: Product) -> Path:
        """The folder of a product, which is made here and now if nobody made it yet.

        Others that need it meanwhile wait. Its hash enters the provenance of the run.
        """
        folder = self.root / "products" / product.hash
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                self._make(product, folder)
        journal.append(self.journal, product=product.hash, label=product.label)
        return folder

    def _make(self, product: Product, folder: Path) -> None:
        work = folder.with_name(f"{folder.name}.making")
        checkpoint = work / "checkpoint"
        checkpoint.mkdir(parents=True, exist_ok=True)
        started = time.time()
        self.log(event="making", label=product.label)
        context = Context(work, checkpoint, self.device, self.root, self.journal)
        product.make(work, context)
        shutil.rmtree(checkpoint)
        record = provenance(self.device) | {"started": started, "seconds": round(time.time() - started, 3)}
        files.write_json(work / "product.json", {"config": canonical(product), "label": product.label, **record})
        for path in sorted(work.rglob("*")):
            files.sync(path)
        work.rename(folder)
        files.sync(folder.parent)

    def progress(self, fraction: float, message: str = "") -> None:
        """Report how much of the run is done (0 to 1); at most two reports a second are kept, and the last one."""
        now = time.monotonic()
        if now - self._reported >= 0.5 or fraction >= 1:
            self._reported = now
            self.log(progress=round(min(max(float(fraction), 0.0), 1.0), 4), message=message)

    def log(self, **fields: Any) -> None:
        """Append one line of JSON with the time to ``log.jsonl``; what is not finite becomes null."""
        journal.append(self.journal, **fields)
