"""Offline datasets in the format of Minari (Farama Foundation), which other offline libraries read and write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from core import files
from core.errors import InputError, require
from core.offline.dataset import OfflineDataset

EXTRA = "sepsis"
KNOWLEDGE = ("behaviour_log_prob", "behaviour_probability")
"""Optional fields of a dataset, kept in the infos of its episodes; extras are there under ``extras.NAME``."""


def to_minari(
    dataset: OfflineDataset,
    dataset_id: str,
    root: Path,
    *,
    algorithm_name: str,
    author: str,
    description: str,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``dataset`` to the folder ``root/dataset_id``, whole or not at all, and return that folder.

    Minari numbers episodes and steps from 0, and so does a dataset that is read again.

    Args:
        dataset: what to write; within an episode each next observation must be the next row's observation.
        dataset_id: such as ``szilard/sepsis44/physician-v0``.
        root: Minari's folder of datasets (its ``MINARI_DATASETS_PATH``).
        algorithm_name: the behaviour policy.
        author: of the data.
        description: of the data.
        metadata: further plain data, such as measures of quality or ``ref_min_score``.

    Raises:
        InputError: the folder exists, or a next observation is not the next row's.
        MissingExtra: Minari is not installed.
    """
    minari, storage = _minari()
    folder = (Path(root) / dataset_id).absolute()  # what Minari joins to a relative one counts from itself
    if folder.exists():
        raise InputError(f"{folder}: exists; choose another version or remove it")
    _check_chain(dataset)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        # HDF5, since Minari cannot read again the infos of one number a step that it writes to Arrow files.
        written = storage.new(
            temporary / "data",
            observation_space=dataset.observation_space,
            action_space=dataset.action_space,
            data_format="hdf5",
        )
        written.update_metadata(
            {
                **(metadata or {}),
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "algorithm_name": algorithm_name,
                "author": {author},
                "description": description,
            }
        )
        written.update_episodes(_buffers(dataset, minari.data_collector.EpisodeBuffer))
        for path in temporary.rglob("*"):
            files.sync(path)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def from_minari(source: str | Path, root: Path | None = None) -> OfflineDataset:
    """Read a local Minari dataset; nothing is ever downloaded.

    An episode that neither terminated nor was truncated is taken as truncated; infos that ``to_minari`` did not write
    are left out.

    Args:
        source: an id, or the folder of a dataset.
        root: Minari's folder of datasets; None for a ``source`` that is a folder, or for Minari's own default.

    Raises:
        InputError: there is no such dataset, its spaces are not a flat Box of observations and a Box or Discrete of
            actions, or its values are refused by ``OfflineDataset``.
        MissingExtra: Minari is not installed.
    """
    minari, _ = _minari()
    folder = Path(source) if root is None else Path(root) / source
    if root is None and not folder.exists():
        folder = Path(minari.storage.get_dataset_path(str(source)))
    if not (folder / "data").is_dir():
        raise InputError(f"{folder}: no Minari dataset")
    try:
        read = minari.MinariDataset(folder / "data")
        episodes = list(read.iterate_episodes())
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"{folder}: not a Minari dataset ({' '.join(str(error).split())})") from error
    if not episodes or not isinstance(read.observation_space, spaces.Box):
        raise InputError(f"{folder}: {len(episodes)} episodes of {read.observation_space}; allowed: 1 or more of a Box")
    lengths = torch.tensor([len(e.rewards) for e in episodes])
    last = torch.cumsum(lengths, 0) - 1
    terminated, truncated = (
        torch.from_numpy(np.concatenate([getattr(e, name) for e in episodes]).astype(bool))
        for name in ("terminations", "truncations")
    )
    truncated[last] = ~terminated[last]
    infos = {name: _joined([e.infos[name][:-1] for e in episodes]) for name in episodes[0].infos or {} if _ours(name)}
    actions = _joined([e.actions for e in episodes])
    return OfflineDataset(
        observations=_joined([e.observations[:-1] for e in episodes]),
        actions=actions.long() if isinstance(read.action_space, spaces.Discrete) else actions,
        rewards=_joined([e.rewards for e in episodes]),
        next_observations=_joined([e.observations[1:] for e in episodes]),
        terminated=terminated,
        truncated=truncated,
        episode=torch.repeat_interleave(torch.arange(len(episodes)), lengths),
        step=torch.cat([torch.arange(n) for n in lengths.tolist()]),
        observation_space=read.observation_space,
        action_space=read.action_space,
        **{name: infos.get(name) for name in KNOWLEDGE},
        extras={name.removeprefix("extras."): x for name, x in infos.items() if name not in KNOWLEDGE},
        name=str(folder),
    )


def _minari() -> tuple[Any, Any]:
    # Minari needs both for HDF5, but its own extra brings only h5py.
    require("PIL", EXTRA)
    return require("minari", EXTRA), require("minari.dataset.minari_storage", EXTRA).MinariStorage


def _ours(name: str) -> bool:
    return name in KNOWLEDGE or name.startswith("extras.")


def _joined(parts: list[Any]) -> Tensor:
    values = np.concatenate([np.asarray(part) for part in parts])
    return torch.from_numpy(values.astype(np.float32) if values.dtype == np.float64 else values)


def _check_chain(dataset: OfflineDataset) -> None:
    inner = torch.arange(len(dataset) - 1, device=dataset.device)
    inner = inner[dataset.ends[:-1] != inner]
    wrong = (dataset.next_observations[inner] != dataset.observations[inner + 1]).any(1)
    if bool(wrong.any()):
        row = int(inner[wrong][0])
        raise InputError(f"{dataset.name}: next_observations: row {row} is not the observation of row {row + 1}")


def _buffers(dataset: OfflineDataset, buffer: Any) -> Any:
    data = dataset.to("cpu")
    infos = {name: getattr(data, name) for name in KNOWLEDGE if getattr(data, name) is not None}
    infos |= {f"extras.{name}": value for name, value in data.extras.items()}
    for first, length in zip(data.starts.tolist(), data.lengths.tolist(), strict=True):
        rows = slice(first, first + length)
        yield buffer(
            observations=torch.cat([data.observations[rows], data.next_observations[rows][-1:]]).numpy(),
            actions=data.actions[rows].numpy(),
            rewards=data.rewards[rows].numpy(),
            terminations=data.terminated[rows].numpy(),
            truncations=data.truncated[rows].numpy(),
            # An info belongs to an observation, of which there is one more than steps: the last is a filler.
            infos={name: torch.cat([x[rows], torch.zeros_like(x[:1])]).numpy() for name, x in infos.items()} or None,
        )
