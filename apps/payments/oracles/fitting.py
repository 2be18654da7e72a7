"""Every oracle by its settings: fitted to rows, and loaded from a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError

from apps.payments.oracles.factored import FactoredSettings
from apps.payments.oracles.gbdt import GBDTSettings
from apps.payments.oracles.homeostatic import HomeostaticSettings
from apps.payments.oracles.hopfield import HopfieldSettings
from apps.payments.oracles.imbalance import ImbalanceSettings, RecalibratedOracle, fit_recalibrated
from apps.payments.oracles.mlp import MLPSettings
from apps.payments.oracles.oracle import Oracle, OracleConfig
from apps.payments.oracles.rows import Rows
from apps.payments.oracles.vw import VWSettings
from core import files
from core.errors import InputError
from simulators.payments.context import Sizes

OracleSettings = Annotated[
    FactoredSettings | GBDTSettings | MLPSettings | VWSettings | HopfieldSettings | HomeostaticSettings,
    Field(discriminator="kind"),
]
"""Which regression, by its ``kind``."""


def fit_oracle(
    settings: OracleConfig,
    imbalance: ImbalanceSettings,
    rows: Rows,
    sizes: Sizes,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    previous: Oracle[Any] | None = None,
) -> Oracle[Any]:
    """Learn approval probabilities from answered payments, with what is done about the rare declines.

    Args:
        settings: which regression.
        imbalance: resampling, reweighting, correction and recalibration.
        rows: n answered payments.
        sizes: of the portfolio.
        seed: of all that is random in the fit.
        device: where a network is trained.
        previous: the model now deployed, for an oracle that goes on learning.

    Raises:
        InputError: rows that are refused (see ``Rows.check``), or a loss that the oracle does not have.
        ConstantLabels: the rows have one label only: keep the model now deployed.
        OracleDiverged: the loss was not finite, after smaller steps too: keep the model now deployed.
    """
    if imbalance.calibration == "none":
        return settings.fit(rows, sizes, seed=seed, device=device, previous=previous)
    return fit_recalibrated(settings, imbalance, rows, sizes, seed=seed, device=device, previous=previous)


def load_oracle(directory: str | Path, device: torch.device | str = "cpu") -> Oracle[Any]:
    """The oracle in a folder, whichever kind it is; no optional package is needed.

    Raises:
        InputError: no oracle there, or files that are damaged or do not belong together.
    """
    folder = Path(directory)
    path = folder / "oracle.json"
    data = files.read_json(path, ("settings", "sizes", "sha256", "extras"))
    weights = folder / "oracle.safetensors"
    try:
        content = weights.read_bytes()
        if hashlib.sha256(content).hexdigest() != data["sha256"]:
            raise InputError(f"{weights}: its checksum is not the one in {path.name}")
        settings: OracleConfig = TypeAdapter(OracleSettings).validate_python(data["settings"])
        state = {name: x.to(device) for name, x in safetensors.torch.load(content).items()}
        raw = settings.restore(state, data["extras"], Sizes(**data["sizes"]))
        return RecalibratedOracle.restored(raw, data["recalibration"]) if "recalibration" in data else raw
    except OSError as error:
        raise InputError(f"{weights}: {(error.strerror or str(error)).lower()}") from error
    except (ValidationError, SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a saved oracle ({' '.join(str(error).split())})") from error
