"""The verbs for people who talk with a policy, in a terminal or in a browser."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from apps.crs.chat import ChatSession
from apps.crs.chat import chat as hold_dialogue
from apps.crs.chat import serve as serve_pages
from apps.crs.chat.service import TTL
from apps.crs.chat.terminal import script as script_lines
from apps.crs.policies import OracleAsk, Policy
from apps.crs.policy_folder import fingerprint, make_policy, open_policy
from apps.crs.problem import Opened
from apps.crs.products import PolicyProduct
from apps.crs.verb_inputs import (
    METHODS,
    OverlapOption,
    RulesOption,
    open_catalogue,
    open_method,
    open_problem,
    source_of,
)
from core.errors import InputError
from core.study.commands import Device, DeviceOption, open_device, working

CatalogueOption = Annotated[
    str | None,
    typer.Option(
        metavar="CATALOGUE",
        help="A folder, a CSV file of items, or a preset; with a policy, refuse one for another catalogue.",
    ),
]
USUAL = "active_inference"
"""The method without one given."""
MethodOption = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="Without a policy, what is made for the catalogue here and now: "
        f"{', '.join(kind for kind in METHODS if kind != 'oracle')}.  \\[default: {USUAL}]",
    ),
]


def chat(
    policy: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder that train has written.")] = None,
    catalogue: CatalogueOption = None,
    user: Annotated[int | None, typer.Option(help="Id of a known user.  \\[default: somebody unknown]")] = None,
    script: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the answers from a file, one a line.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the transcript.")] = None,
    method: MethodOption = None,
    rules: RulesOption = None,
    allow_overlap: OverlapOption = False,
    device: DeviceOption = Device.cpu,
) -> None:
    """Talk with a policy: it asks what you want, and recommends. Exits with 0 if you took an item, with 3 if not.

    Example: szilard crs chat --policy runs/dqn

    Example: szilard crs chat --catalogue shop/items.csv
    """
    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise InputError(f"--json {json}: {'is a folder' if json.is_dir() else f'{json.parent} is no folder'}")
    lines = None if script is None else script_lines(script)
    given = [] if policy is None else [policy]
    opened, policies = _open(given, catalogue, method, rules, allow_overlap, device)
    (name, chosen), *_ = policies.items()
    session = ChatSession(opened.world, chosen, user=user, name=name)
    raise typer.Exit(hold_dialogue(session, lines=lines, json_path=json))


def serve(
    policies: Annotated[
        list[Path] | None, typer.Argument(metavar="[POLICY]...", help="Folders of train, to be shown side by side.")
    ] = None,
    catalogue: CatalogueOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    ttl: Annotated[float, typer.Option(help="Seconds until an idle dialogue is forgotten.")] = TTL,
    method: MethodOption = None,
    rules: RulesOption = None,
    allow_overlap: OverlapOption = False,
    device: DeviceOption = Device.cpu,
) -> None:
    """Serve a page on which people talk with a policy, or with several side by side; Ctrl-C ends it.

    Example: szilard crs serve runs/dqn runs/threshold

    Example: szilard crs serve --catalogue shop/items.csv
    """
    opened, chosen = _open(policies or [], catalogue, method, rules, allow_overlap, device)
    serve_pages(opened.world, chosen, host, port, ttl=ttl, say=lambda line: print(line, flush=True))


def _open(
    folders: Sequence[Path],
    catalogue: str | None,
    method: str | None,
    rules: list[str] | None,
    allow_overlap: bool,
    device: Device,
) -> tuple[Opened, dict[str, Policy]]:
    """The conversation and the policies by name, all in the same conversation.

    Raises:
        InputError: neither a policy nor a catalogue, or policies that do not fit each other.
    """
    target = open_device(device)
    if not folders and catalogue is None:
        raise InputError("give a policy of szilard crs train, or --catalogue")
    if folders and method is not None:
        raise InputError(f"--method {method}: a policy brings its own; give one or the other")
    method = method or USUAL
    twice = [str(folder) for place, folder in enumerate(folders) if folder.resolve() in _paths(folders[:place])]
    if twice:
        raise InputError(f"{twice[0]}: stands there twice; must be different policies")
    source = None if catalogue is None else source_of(catalogue)
    found = None
    if source is not None:
        found = open_catalogue(source, allow_overlap=allow_overlap or bool(folders), quiet=bool(folders))
    if not folders and source is not None and found is not None:
        settings = open_method(method, None, "chat")
        problem = open_problem(source, found, rules, "chat")
        product = PolicyProduct(problem=problem, method=settings, seed=0)
        with tempfile.TemporaryDirectory() as scratch, working(f"{found.name}: preparing") as progress:
            make_policy(Path(scratch), product, target, progress, catalogue=found)
            opened, policy, _ = open_policy(Path(scratch), device=target)
        _check_talks(f"--method {method}", policy)
        return opened, {settings.name: policy}
    held = [open_policy(folder, catalogue=found, device=target, rules=rules) for folder in folders]
    first = held[0][0]
    policies: dict[str, Policy] = {}
    for folder, (opened, policy, product) in zip(folders, held, strict=True):
        _check_fits(folder, opened, folders[0], first)
        _check_talks(str(folder), policy)
        name = product.method.name
        policies[f"{name} ({folder.name})" if name in policies else name] = policy
    if len(policies) < len(folders):
        raise InputError(f"{', '.join(map(str, folders))}: must be different policies")
    return first, policies


def _paths(folders: Sequence[Path]) -> set[Path]:
    return {folder.resolve() for folder in folders}


def _check_talks(source: str, policy: Policy) -> None:
    """Only simulated users have a target that is known."""
    if isinstance(policy, OracleAsk):
        raise InputError(f"{source}: has to know what people want before they say it; must be another method")


def _check_fits(folder: Path, opened: Opened, other: Path, first: Opened) -> None:
    """A dialogue's scores come from one conversation, so side by side stand only policies of the same."""
    known = {
        "catalogue": (opened.world.catalogue.hash, first.world.catalogue.hash),
        "embeddings": (fingerprint(opened.world.embeddings), fingerprint(first.world.embeddings)),
        "rules": (opened.problem.rules, first.problem.rules),
    }
    for what, (here, there) in known.items():
        if here != there:
            raise InputError(f"{folder}: {what} {here}; must be {there}, as of {other}")
