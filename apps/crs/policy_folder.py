"""The folder of a policy: all that is needed to play it, and a checkpoint while it is made."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from apps.crs.embedding import Progress, fit_embeddings
from apps.crs.policies import Policy
from apps.crs.problem import Opened
from apps.crs.products import PolicyProduct
from apps.crs.verb_inputs import with_rules
from core import files
from core.errors import InputError, MissingExtra
from core.seeds import stream
from core.study import Context
from core.study.loading import from_options
from core.study.provenance import provenance, version
from core.study.store import Store
from simulators.crs import Catalogue, Embeddings, storage

RECORD, REQUEST = "policy.json", "provenance.json"
"""What was made, written last; and what was asked for, written first."""
CATALOGUE, EMBEDDINGS, METHOD, CHECKPOINT, JOURNAL = "catalogue", "embeddings", "method", "checkpoint", "log.jsonl"
OWN = (RECORD, CHECKPOINT, METHOD, EMBEDDINGS, CATALOGUE, JOURNAL, REQUEST)
"""All that is written into the folder; the request is removed last, so that a clearing that was stopped can go on."""
EMBEDDING_SHARE = 0.1
"""Of the progress."""


@dataclass
class _Told(Context):
    """A context that also tells somebody how far it is."""

    tell: Progress = field(kw_only=True)

    def progress(self, fraction: float, message: str = "") -> None:
        super().progress(fraction, message)
        self.tell(fraction, message)


def make_policy(
    folder: Path,
    product: PolicyProduct,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    *,
    catalogue: Catalogue | None = None,
    embeddings: Embeddings | None = None,
    fresh: bool = False,
) -> bool:
    """Tune or train a policy in a folder, or go on where a kill has stopped it.

    Args:
        folder: made if absent; it holds ``policy.json``, and the folders ``catalogue``, ``embeddings`` and ``method``.
        product: the policy.
        device: on which to compute.
        progress: told the share done and a message.
        catalogue: that of the problem, if it is open already.
        embeddings: in place of those that the problem says how to fit.
        fresh: remove what a training left there and start anew.

    Returns:
        Whether anything was to be done.

    Raises:
        InputError: the folder holds other work, other files, or is in use; or the problem cannot be played.
        TrainingDiverged: a number is not finite; the checkpoint keeps the last good state.
    """
    catalogue = product.problem.catalogue.open() if catalogue is None else catalogue
    # Whatever is wrong with the rules is said before embeddings are fitted.
    Opened(product.problem, catalogue, _points(catalogue), "cpu")
    asked = {
        # Where the catalogue lies does not matter, what is in it does.
        "problem": product.problem.model_dump(mode="json", exclude={"catalogue"}),
        "method": product.method.model_dump(mode="json"),
        "seed": product.seed,
        "catalogue": catalogue.hash,
        "embeddings": "fitted" if embeddings is None else fingerprint(embeddings),
    }
    asked = json.loads(json.dumps(files.jsonable(asked)))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file, not a folder")
    new = not (folder / REQUEST).exists()
    if new:
        _refuse_strangers(folder)
    with Store(folder).lock():
        if fresh:
            clear(folder)
        _refuse_other_work(folder, asked)
        if (folder / RECORD).exists():
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
            return False
        files.write_json(folder / REQUEST, {"asked": asked, "version": version()})
        try:
            _make(folder, product, catalogue, embeddings, torch.device(device), progress or _unheard)
        except (InputError, MissingExtra):
            if new:  # so that the folder is free for what was meant
                clear(folder)
            raise
    return True


def open_policy(
    folder: Path,
    *,
    catalogue: Catalogue | None = None,
    device: torch.device | str = "cpu",
    rules: Sequence[str] | None = None,
) -> tuple[Opened, Policy, PolicyProduct]:
    """The policy that ``make_policy`` has made, in the conversation it was made for.

    Args:
        folder: of the policy.
        catalogue: that it is expected to be about; by default whatever it is about.
        device: on which to play.
        rules: ``KEY=VALUE`` changes of the rules.

    Raises:
        InputError: no policy or an unfinished one, damaged files, another catalogue, or rules that it cannot be played
            by.
    """
    if not (folder / RECORD).exists():
        unfinished = (folder / REQUEST).exists()
        why = "its training is not finished; the same train command goes on with it" if unfinished else "no policy"
        raise InputError(f"{folder}: {why if unfinished else 'holds no policy; szilard crs train writes one'}")
    record = files.read_json(folder / RECORD, ("problem", "method", "seed", "catalogue"))
    if catalogue is not None and catalogue.hash != record["catalogue"]:
        raise InputError(
            f"{folder}: a policy for catalogue {record['catalogue']} ({record.get('catalogue_name')}); "
            f"--catalogue is {catalogue.hash} ({catalogue.name})"
        )
    held = storage.load(folder / CATALOGUE, allow_overlap=True)
    if held.hash != record["catalogue"]:
        raise InputError(f"{folder / CATALOGUE}: {held.hash}; must be {record['catalogue']}, as {RECORD} says")
    origin = str(folder / RECORD)
    made_for = with_rules(record["problem"], None, origin).rules
    problem = with_rules(record["problem"], rules, origin)
    if problem.rules.question != made_for.question:
        asked = problem.rules.question
        raise InputError(f"--rules question={asked}: the policy was made for {made_for.question} questions")
    values = {"problem": problem, "method": record["method"], "seed": record["seed"]}
    product = from_options(PolicyProduct, values, origin)
    embeddings = Embeddings.load(folder / EMBEDDINGS, held)
    opened = Opened(problem, held, embeddings, device)
    try:
        policy = product.method.open(opened.world, folder / METHOD, product.seed)
    except InputError as error:
        # Networks that see the turn have an input for each.
        if problem.rules.max_turns == made_for.max_turns:
            raise
        raise InputError(
            f"--rules max_turns={problem.rules.max_turns}: the policy was trained for {made_for.max_turns} turns"
        ) from error
    return opened, policy, product


def clear(folder: Path) -> None:
    """Remove what ``make_policy`` has written and nothing else; the folder too, if nothing is left."""
    for name in OWN:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def fingerprint(embeddings: Embeddings) -> str:
    """Short hash of the numbers."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in vars(embeddings).items()}
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()[:16]


def _make(
    folder: Path,
    product: PolicyProduct,
    catalogue: Catalogue,
    embeddings: Embeddings | None,
    device: torch.device,
    tell: Progress,
) -> None:
    checkpoint, problem = folder / CHECKPOINT, product.problem
    for name in (CHECKPOINT, METHOD):
        (folder / name).mkdir(exist_ok=True)
    storage.save(catalogue, folder / CATALOGUE)
    start = 0.0 if embeddings is not None else EMBEDDING_SHARE
    if embeddings is None and not (folder / EMBEDDINGS).exists():
        embeddings = fit_embeddings(
            catalogue,
            problem.embedding,
            stream(problem.seed, "embeddings"),
            device=device,
            checkpoint=checkpoint / "embeddings.safetensors",
            progress=lambda share, said: tell(start * share, f"embeddings, {said}"),
        )
    if embeddings is not None and not (folder / EMBEDDINGS).exists():
        # Whole or absent: what is there is not fitted again.
        made = checkpoint / EMBEDDINGS
        embeddings.save(made, catalogue, problem.embedding.model_dump(mode="json"))
        made.rename(folder / EMBEDDINGS)
    opened = Opened(problem, catalogue, Embeddings.load(folder / EMBEDDINGS, catalogue), device)
    work = checkpoint / METHOD
    work.mkdir(exist_ok=True)
    context = _Told(
        folder / METHOD,
        work,
        device,
        folder,
        folder / JOURNAL,
        tell=lambda share, said: tell(start + (1 - start) * share, said),
    )
    product.write(folder / METHOD, opened, context)
    record = {
        "problem": problem.model_dump(mode="json"),
        "method": product.method.model_dump(mode="json"),
        "seed": product.seed,
        "catalogue": catalogue.hash,
        "catalogue_name": catalogue.name,
        "embeddings": fingerprint(opened.world.embeddings),
        **provenance(device),
    }
    files.write_json(folder / RECORD, record)
    shutil.rmtree(checkpoint)


def _points(catalogue: Catalogue) -> Embeddings:
    """Embeddings without a dimension to speak of."""
    return Embeddings(*(torch.zeros(n, 1) for n in (catalogue.n_users, catalogue.n_items, catalogue.n_attributes)))


def _refuse_strangers(folder: Path) -> None:
    strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.exists() else []
    if strangers:
        raise InputError(f"--out {folder}: holds {strangers[0]}, which no training wrote; choose another --out")


def _refuse_other_work(folder: Path, asked: Mapping[str, Any]) -> None:
    if not (folder / REQUEST).exists():
        return
    held = files.read_json(folder / REQUEST, ("asked",))["asked"]
    if held != asked:
        said = difference("", held, asked)
        raise InputError(f"--out {folder}: holds work with {said}; choose another --out, or --fresh to remove it")


def difference(name: str, held: Any, asked: Any) -> str:
    """The first place in which two values, JSON objects for instance, are not the same, in words."""
    if isinstance(held, dict) and isinstance(asked, dict):
        key = next(key for key in {**asked, **held} if held.get(key) != asked.get(key))
        return difference(f"{name}.{key}".removeprefix("."), held.get(key), asked.get(key))
    return f"{name} = {json.dumps(held)}, now {json.dumps(asked)}"


def _unheard(share: float, message: str) -> None:
    pass
