"""A trained UNICORN as a policy, and its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
from pydantic import ValidationError

from apps.crs.learned import QPolicy
from apps.crs.unicorn.network import UnicornNetwork
from apps.crs.unicorn.settings import UnicornSettings
from apps.crs.unicorn.training import UnicornDQN, new_choice
from core import files
from core.errors import InputError
from core.rl.checkpoint import read_tensors
from simulators.crs.conversation import Conversation

WEIGHTS, RECORD = "unicorn.safetensors", "unicorn.json"


def policy_of(model: UnicornDQN, world: Conversation | None = None) -> QPolicy:
    """The greedy policy of a learner, as it stands and as it will stand when it has learnt further.

    Args:
        model: the learner.
        world: where to act; by default where it learns.
    """
    network = model.network
    return QPolicy(new_choice(world or network.world, network.settings), network)


def save(network: UnicornNetwork, folder: Path) -> None:
    """Write the weights, and beside them the settings and what they belong to."""
    world = network.world
    record = {**_belongs(world), "settings": network.settings.model_dump(mode="json")}
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, safetensors.torch.save(weights))
    files.write_json(folder / RECORD, record)


def load(folder: Path, world: Conversation) -> QPolicy:
    """The greedy policy that ``save`` wrote, on dialogues of ``world``.

    Raises:
        InputError: a file is absent or damaged, or the policy is one for another catalogue, other embeddings or other
            questions.
    """
    path = folder / RECORD
    belongs = _belongs(world)
    record = files.read_json(path, (*belongs, "settings"))
    for name, value in belongs.items():
        if record[name] != value:
            raise InputError(f"{path}: {name} {record[name]}; must be {value}, as {world.catalogue.name} has here")
    try:
        settings = UnicornSettings(**record["settings"])
    except (TypeError, ValidationError) as error:
        raise InputError(f"{path}: settings: {' '.join(str(error).split())}") from error
    network = UnicornNetwork(world, settings).to(world.device)
    tensors, _ = read_tensors(folder / WEIGHTS)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS}: {' '.join(str(error).split())}") from error
    return QPolicy(new_choice(world, settings), network)


def _belongs(world: Conversation) -> dict[str, str]:
    """What a policy cannot be carried away from."""
    found = hashlib.sha256()
    for table in (world.embeddings.user, world.embeddings.item, world.embeddings.attribute):
        found.update(table.detach().cpu().contiguous().numpy().tobytes())
    return {
        "catalogue": world.catalogue.hash,
        "embeddings": found.hexdigest()[:16],
        "question": world.rules.question,
    }
