"""The verbs that make a policy, test it, compare two of them, and say how fast they are."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.crs.verb_inputs import (
    METHODS,
    CatalogueArgument,
    OverlapOption,
    RulesOption,
    make_folder,
    open_catalogue,
    open_method,
    open_problem,
    source_of,
)
from core.errors import InputError
from core.study.commands import Device, DeviceOption, SeedOption, Set, open_device, working
from core.study.terminal import print_rows

if TYPE_CHECKING:
    import torch

    from apps.crs.policies import Policy
    from apps.crs.problem import Opened
    from apps.crs.products import PolicyProduct
    from simulators.crs import Catalogue, Embeddings

PolicyArgument = Annotated[Path, typer.Argument(metavar="POLICY", help="Folder that train has written.")]
CatalogueOption = Annotated[
    str | None,
    typer.Option(metavar="CATALOGUE", help="Refuse a policy for another catalogue than this.  \\[default: its own]"),
]


class Part(StrEnum):
    """Which interactions are played."""

    train = "train"
    valid = "valid"
    test = "test"


def train(
    method: Annotated[
        str,
        typer.Argument(metavar="METHOD", help=f"One of {', '.join(METHODS)}.", autocompletion=lambda: list(METHODS)),
    ],
    catalogue: CatalogueArgument,
    out: Annotated[Path, typer.Option(help="Folder of the policy.")],
    overrides: Set = None,
    rules: RulesOption = None,
    embedding: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that embed has written.  \\[default: fitted here]")
    ] = None,
    allow_overlap: OverlapOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on where it stopped, or start anew.")] = True,
) -> None:
    """Tune or train a policy; the folder holds all that is needed to play it, the catalogue included.

    The same command goes on with a training that was stopped.

    Example: szilard crs train dqn small --out runs/dqn --set learning.steps=36000

    Example: szilard crs train threshold runs/shop --out runs/threshold --rules question=enumerated
    """
    from apps.crs.policy_folder import make_policy
    from apps.crs.products import PolicyProduct

    settings = open_method(method, overrides, "train")
    source, target = source_of(catalogue), open_device(device)
    found = open_catalogue(source, allow_overlap=allow_overlap)
    points, fit = _embeddings(embedding, found)
    problem = open_problem(source, found, rules, "train", **fit)
    product = PolicyProduct(problem=problem, method=settings, seed=seed)
    with working(f"training {method}", resumable=True) as progress:
        done = make_policy(
            out, product, target, progress, catalogue=found, embeddings=points, fresh=not resume
        )  # fmt: skip
    if not done:
        print("was finished before", file=sys.stderr)
    print(out)


def _embeddings(folder: Path | None, catalogue: Catalogue) -> tuple[Embeddings | None, dict[str, Any]]:
    """Embeddings in a folder, and how they were fitted."""
    from core import files
    from simulators.crs import Embeddings
    from simulators.crs.embeddings import RECORD

    if folder is None:
        return None, {}
    points = Embeddings.load(folder, catalogue)
    return points, {"embedding": files.read_json(folder / RECORD, ("settings",))["settings"]}


def evaluate(
    policy: PolicyArgument,
    catalogue: CatalogueOption = None,
    split: Annotated[Part, typer.Option(help="Whose interactions are played.")] = Part.test,
    limit: Annotated[int | None, typer.Option(help="Most dialogues.  \\[default: all]", min=1)] = None,
    shortcut: Annotated[
        bool, typer.Option("--shortcut", help="Recommend as soon as all candidates fit into a list.")
    ] = False,
    rules: RulesOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.nc, transcripts.jsonl and summary.json.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Play dialogues with a policy: how many succeed, how soon, and where in the list.

    Policies that are evaluated with the same seed meet the same users, targets, openings and luck.

    Example: szilard crs evaluate runs/dqn --out runs/dqn-test

    Example: szilard crs evaluate runs/dqn --limit 500 --rules answer_noise=0.1
    """
    from apps.crs.evaluation import Cases
    from apps.crs.evaluation import evaluate as play
    from apps.crs.evaluation_folder import check_folder, rows_of, write_evaluation
    from apps.crs.policy_folder import fingerprint
    from apps.crs.transcripts import Names
    from core.seeds import stream
    from core.study.provenance import provenance

    target = open_device(device)
    opened, chosen, product = _open(policy, catalogue, target, rules)
    world = opened.world
    asked: dict[str, Any] = {
        "catalogue": world.catalogue.hash,
        "method": product.method.model_dump(mode="json"),
        "method_seed": product.seed,
        "embeddings": fingerprint(world.embeddings),
        "rules": opened.problem.model_dump(mode="json")["rules"],
        **{"split": split.value, "limit": limit, "shortcut": shortcut, "seed": seed},
    }
    if out is not None:
        check_folder(out, asked)
        make_folder(out, "--out")
    cases = Cases.of(world, world.catalogue.pairs(split.value), stream(seed, f"{split.value} dialogues"), limit)
    with working(f"evaluating {product.method.name}") as progress:
        played = play(world, chosen, cases, shortcut=shortcut, progress=progress)
    rows = rows_of(played, f"{world.catalogue.name}, {split.value}", product.method.name)
    print_rows(rows)
    print(f"n = {len(cases.pairs):,} dialogues; 95 % bootstrap intervals over dialogues")
    if out is not None:
        attributes = {"policy": product.method.name, "split": split.value, "seed": seed, **provenance(target)}
        names = Names(world.catalogue, opened.problem.rules.question)
        write_evaluation(out, played, names, rows, asked, **attributes)
        print(out)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder of evaluate, or STUDY::METHOD[::PROBLEM].")],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    out: Annotated[Path | None, typer.Option(help="JSON file of the table.")] = None,
) -> None:
    """Paired differences, A less B, on the same users, targets and openings.

    Example: szilard crs compare runs/dqn-test runs/threshold-test

    Example: szilard crs compare runs/crs_quick::DQN runs/crs_quick::Threshold
    """
    from dataclasses import asdict

    from apps.crs.evaluation_folder import differences, notes, open_played
    from core import files

    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out {out}: {'is a folder' if out.is_dir() else f'{out.parent} is no folder'}")
    one, other = open_played(a), open_played(b)
    rows = differences(one, other)
    for note in notes(one, other):
        print(f"note: {note}", file=sys.stderr)
    print_rows(rows)
    trainings = f"{len(one.trainings)} and {len(other.trainings)} trainings"
    print(f"n = {one.first.sizes['dialogue']:,} dialogues, {trainings}; 95 % bootstrap intervals")
    if out is not None:
        files.write_json(out, {"a": a, "b": b, "table": [asdict(row) for row in rows]})
        print(out)


def bench(
    catalogue: Annotated[
        str | None,
        typer.Argument(metavar="[CATALOGUE]", help="As for train.  \\[default: small, or the policy's own]"),
    ] = None,
    policy: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A policy of train in place of rules; may be repeated.")
    ] = None,
    dialogues: Annotated[int, typer.Option(help="That are played.", min=1)] = 512,
    batch: Annotated[int, typer.Option(help="Dialogues at once.", min=1)] = 64,
    rules: RulesOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.cpu,
) -> None:
    """Turns of dialogues in a second, with one thread, and the memory it took; embeddings are random unless trained.

    Example: szilard crs bench lastfm-star-sized --dialogues 128
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from apps.crs.evaluation import Cases
    from apps.crs.speed import measure, peak_memory
    from core.seeds import stream

    target = open_device(device)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("policy", "turns", "CPU s", "turns a CPU s", "turns a s"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, opened, chosen in _timed(catalogue, policy or [], rules, seed, target):
        pairs = opened.world.catalogue.pairs("test")
        cases = Cases.of(opened.world, pairs, stream(seed, "test dialogues"), dialogues)
        found = measure(opened.world, chosen, cases, batch=batch)
        numbers = f"{found.steps:,}", f"{found.cpu:.2f}", f"{found.per_cpu_second:,.0f}", f"{found.per_second:,.0f}"
        table.add_row(escape(name), *numbers)
        shape = opened.world.catalogue
    Console(highlight=False).print(table)
    print(f"{shape.name}: {shape.n_items:,} items, {shape.n_attributes:,} attributes; {batch} dialogues at once")
    print(f"peak memory: {peak_memory(target):,.0f} MiB on {target.type}")


def _timed(
    catalogue: str | None, folders: list[Path], rules: list[str] | None, seed: int, device: torch.device
) -> list[tuple[str, Opened, Policy]]:
    """Policies in folders, or the rules that need no tuning."""
    from apps.crs.active_inference import ActiveInference
    from apps.crs.embedding import EmbeddingSettings, fit_embeddings
    from apps.crs.policies import AbsGreedy, MaxEntropy, Threshold
    from apps.crs.problem import Opened

    if folders:
        found = [(folder, *_open(folder, catalogue, device, rules)) for folder in folders]
        return [(f"{product.method.name} ({folder})", opened, chosen) for folder, opened, chosen, product in found]
    source = source_of(catalogue or "small")
    shape = open_catalogue(source)
    problem = open_problem(source, shape, rules, "bench", embedding={"method": "random"})
    points = fit_embeddings(shape, EmbeddingSettings(method="random"), seed, device=device)
    opened = Opened(problem, shape, points, device)
    world = opened.world
    chosen = [AbsGreedy(world), MaxEntropy(world, seed=seed), Threshold(world, 100), ActiveInference(world)]
    return [(type(policy).__name__, opened, policy) for policy in chosen]


def _open(
    folder: Path, catalogue: str | None, device: torch.device, rules: list[str] | None
) -> tuple[Opened, Policy, PolicyProduct]:
    """What ``open_policy`` returns."""
    from apps.crs.policy_folder import open_policy

    expected = None if catalogue is None else open_catalogue(source_of(catalogue), allow_overlap=True, quiet=True)
    return open_policy(folder, catalogue=expected, device=device, rules=rules)
