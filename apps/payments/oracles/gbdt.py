"""Gradient-boosted trees, fitted by scikit-learn, LightGBM or XGBoost and kept as plain arrays.

None of the three has a file that is both safe to load and readable without the library (scikit-learn's is a pickle), so
the nodes are taken out of the fitted model and saved as safetensors; predictions come from them alone, see ``forest``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from apps.payments.oracles.forest import MISSING, Forest, Node, Trees
from apps.payments.oracles.oracle import Oracle, OracleConfig
from apps.payments.oracles.rows import Rows, level_codes
from core.errors import require
from simulators.payments.context import CATEGORIES, NUMERICS, PaymentContext, Sizes, flag_bits

Array = NDArray[np.float64]

CONTEXT = len(CATEGORIES) + len(NUMERICS)
"""Columns of the context; those of the flag bits follow."""

MOST_LEVELS = 254
"""Levels that a category may have to be split as such: the libraries' histograms have 255 bins."""
FOLDS = 5
"""Of the target encoding: no row's encoding contains its own reward."""
PRIOR_ROWS = 20.0
"""Rows that the mean approval rate counts for in the target encoding of a level."""


@dataclass(frozen=True)
class Columns:
    """How a payment becomes the columns of the trees: six categories, seven numbers, F flag bits.

    A category of which at most ``MOST_LEVELS`` levels occur is split by level. One with more is target-encoded: its
    column is the level's approval rate, shrunk to the mean by ``PRIOR_ROWS`` rows; in training that of the other folds.

    Attributes:
        tables: of each category ``(levels + 1,)`` float64, the code or encoding of a level; last, of an unknown one.
        categorical: of each category, whether it is split by level.
    """

    tables: tuple[Tensor, ...]
    categorical: tuple[bool, ...]

    @staticmethod
    def of(rows: Rows, sizes: Sizes, seed: int) -> tuple[Columns, Tensor]:
        """The columns of a training set, and its values of them ``(n, 13 + F)`` float64."""
        context = rows.context.to("cpu", torch.float64)
        reward = rows.reward.cpu().double()
        weight = torch.ones_like(reward) if rows.weight is None else rows.weight.cpu().double()
        fold = torch.randint(FOLDS, reward.shape, generator=torch.Generator().manual_seed(seed))
        tables, categorical, encoded = [], [], {}
        for i, (name, code) in enumerate(level_codes(context, sizes).items()):
            size = sizes.levels[name] + 1
            seen = torch.bincount(code, weight, size) > 0
            seen[-1] = False
            categorical.append(int(seen.sum()) <= MOST_LEVELS)
            if categorical[-1]:
                tables.append(torch.where(seen, seen.cumsum(0) - 1, MISSING).double())
                continue
            mean = (weight @ reward) / weight.sum()
            mass = torch.bincount(code * FOLDS + fold, weight, size * FOLDS).view(size, FOLDS)
            approvals = torch.bincount(code * FOLDS + fold, weight * reward, size * FOLDS).view(size, FOLDS)
            # Rows of an unknown level say nothing about another unknown one.
            mass[-1], approvals[-1] = 0, 0
            total, of_total = mass.sum(1, keepdim=True), approvals.sum(1, keepdim=True)
            others = (of_total - approvals + PRIOR_ROWS * mean) / (total - mass + PRIOR_ROWS)
            tables.append(((of_total + PRIOR_ROWS * mean) / (total + PRIOR_ROWS)).squeeze(1))
            encoded[i] = others[code, fold]
        columns = Columns(tuple(tables), tuple(categorical))
        values = columns.values(context, sizes)
        for i, column in encoded.items():
            values[i] = column
        return columns, torch.cat([values, flag_bits(sizes.flags)[rows.action.cpu()].T]).T

    def values(self, context: PaymentContext, sizes: Sizes) -> Tensor:
        """``(13, n)`` float64: the context columns of payments."""
        codes = level_codes(context, sizes)
        categories = [table[codes[name]] for name, table in zip(CATEGORIES, self.tables, strict=True)]
        return torch.stack([*categories, *(getattr(context, name).double() for name in NUMERICS)])

    def to(self, device: torch.device) -> Columns:
        """The same tables on another device."""
        return replace(self, tables=tuple(table.to(device) for table in self.tables))


class GBDTSettings(OracleConfig):
    """Gradient-boosted trees."""

    binary: ClassVar[bool] = True

    kind: Literal["gbdt"] = "gbdt"
    backend: Literal["sklearn", "lightgbm", "xgboost"] = "sklearn"
    """The library that fits: scikit-learn's HistGradientBoostingClassifier, LightGBM or XGBoost."""
    iterations: int = Field(default=60, ge=1, le=10_000)
    """Trees."""
    learning_rate: float = Field(default=0.1, gt=0, le=1)
    """Shrinkage of each tree."""
    leaves: int = Field(default=31, ge=2, le=4096)
    """Most leaves of a tree."""
    rows_per_leaf: int = Field(default=50, ge=1)
    """Fewest rows of a leaf; of XGBoost, which counts the hessian, that of as many average rows."""

    def _fit(self, rows: Rows, sizes: Sizes, *, seed: int, **unused: Any) -> GBDTOracle:
        """Fit on the CPU."""
        columns, encoded = Columns.of(rows, sizes, seed)
        values = encoded.numpy()
        weight = None if rows.weight is None else rows.weight.cpu().double().numpy()
        reward = rows.reward.cpu().numpy().astype(np.int64)
        categorical = [i for i, by_level in enumerate(columns.categorical) if by_level]
        values[:, categorical] = np.where(values[:, categorical] == MISSING, np.nan, values[:, categorical])
        # The libraries take a seed of 31 bits.
        trees = BACKENDS[self.backend](self, values, reward, weight, categorical, seed % 2**31)
        return GBDTOracle(self, sizes, columns, trees)

    def restore(self, state: Mapping[str, Tensor], extras: Mapping[str, Any], sizes: Sizes) -> GBDTOracle:
        """The oracle with the saved nodes."""
        tables = tuple(state[f"table.{name}"].cpu() for name in CATEGORIES)
        trees = Trees(**{f.name: state[f"trees.{f.name}"].cpu() for f in fields(Trees)})
        return GBDTOracle(self, sizes, Columns(tables, tuple(extras["categorical"])), trees)


class GBDTOracle(Oracle[GBDTSettings]):
    """Predictions of fitted trees; no library of trees is needed for them.

    Args:
        settings: they were fitted with.
        sizes: of the portfolio.
        columns: how a payment becomes their columns.
        trees: their nodes.
    """

    def __init__(self, settings: GBDTSettings, sizes: Sizes, columns: Columns, trees: Trees) -> None:
        super().__init__(settings, sizes)
        self.columns, self.trees = columns, trees
        self._forests: dict[torch.device, tuple[Columns, Forest]] = {}

    @property
    def parameters(self) -> int:
        """Number of leaves."""
        return int((self.trees.column < 0).sum())

    def state(self) -> dict[str, Tensor]:
        """The nodes and the tables."""
        found = {f"trees.{f.name}": getattr(self.trees, f.name) for f in fields(Trees)}
        return found | {f"table.{name}": x for name, x in zip(CATEGORIES, self.columns.tables, strict=True)}

    def extras(self) -> dict[str, Any]:
        """Which categories are split by level."""
        return {"categorical": list(self.columns.categorical)}

    def _chunk(self, device: torch.device) -> int:
        # A payment needs a byte for each node and a number for each leaf.
        return 1024 if device.type == "cpu" else 2**16

    def _approval(self, context: PaymentContext, dtype: torch.dtype) -> Tensor:
        device = context.log_amount.device
        if device not in self._forests:
            forest = Forest(self.trees, self.columns.categorical, CONTEXT, flag_bits(self.sizes.flags), device)
            self._forests[device] = (self.columns.to(device), forest)
        columns, forest = self._forests[device]
        return forest.scores(columns.values(context, self.sizes), dtype).sigmoid_()


def _sklearn(
    settings: GBDTSettings, values: Array, reward: NDArray[np.int64], weight: Array | None, codes: list[int], seed: int
) -> Trees:
    ensemble = require("sklearn.ensemble", "payments")
    model = ensemble.HistGradientBoostingClassifier(
        max_iter=settings.iterations,
        learning_rate=settings.learning_rate,
        max_leaf_nodes=settings.leaves,
        min_samples_leaf=settings.rows_per_leaf,
        categorical_features=codes or None,
        early_stopping=False,
        random_state=seed,
    ).fit(values, reward, weight)
    # The columns are encoded already, so the model's own encoder of categories is the identity; it has them first.
    order = codes + [i for i in range(values.shape[1]) if i not in codes]

    def nodes(tree: Any) -> list[Node]:
        # Bit i of word w of a set is code 32 w + i.
        lists = np.unpackbits(tree.raw_left_cat_bitsets.view(np.uint8), axis=1, bitorder="little").astype(bool)
        found = []
        for node in tree.nodes:
            if node["is_leaf"]:
                found.append(Node(value=float(node["value"])))
                continue
            left = None
            if node["is_categorical"]:
                left = lists[node["bitset_idx"]].copy()
                left[MISSING] = bool(node["missing_go_to_left"])
            children = int(node["left"]), int(node["right"])
            found.append(Node(0.0, children, order[node["feature_idx"]], float(node["num_threshold"]), left))
        return found

    return Trees.of((nodes(tree) for (tree,) in model._predictors), float(model._baseline_prediction.item()))


def _lightgbm(
    settings: GBDTSettings, values: Array, reward: NDArray[np.int64], weight: Array | None, codes: list[int], seed: int
) -> Trees:
    lightgbm = require("lightgbm", "gbdt")
    options = {
        "objective": "binary",
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.rows_per_leaf,
        "seed": seed,
        "deterministic": True,
        "verbose": -1,
    }
    data = lightgbm.Dataset(values, reward, weight=weight, categorical_feature=codes, params={"verbose": -1})
    model = lightgbm.train(options, data, settings.iterations).dump_model()

    def nodes(tree: Mapping[str, Any]) -> list[Node]:
        found: list[Node] = []

        def add(node: Mapping[str, Any]) -> int:
            place = len(found)
            found.append(Node(value=float(node.get("leaf_value", 0.0))))
            if "split_feature" in node:
                by_level = node["decision_type"] == "=="
                codes_left = [int(code) for code in node["threshold"].split("||")] if by_level else []
                threshold = 0.0 if by_level else float(node["threshold"])
                children = add(node["left_child"]), add(node["right_child"])
                # LightGBM sends a missing level to the right, where the list does not have it.
                left = _code_list(codes_left) if by_level else None
                found[place] = Node(0.0, children, int(node["split_feature"]), threshold, left)
            return place

        add(tree["tree_structure"])
        return found

    return Trees.of((nodes(tree) for tree in model["tree_info"]), 0.0)


def _xgboost(
    settings: GBDTSettings, values: Array, reward: NDArray[np.int64], weight: Array | None, codes: list[int], seed: int
) -> Trees:
    xgboost = require("xgboost", "gbdt")
    mean = float(np.average(reward, weights=weight))
    options = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "grow_policy": "lossguide",
        "max_depth": 0,
        "eta": settings.learning_rate,
        "max_leaves": settings.leaves,
        "min_child_weight": settings.rows_per_leaf * mean * (1 - mean),
        "base_score": mean,
        "seed": seed,
    }
    types = ["c" if i in codes else "float" for i in range(values.shape[1])]
    data = xgboost.DMatrix(values, reward, weight=weight, feature_types=types, enable_categorical=True)
    booster = xgboost.train(options, data, settings.iterations)
    model = json.loads(bytes(booster.save_raw("json")))["learner"]

    def nodes(tree: Mapping[str, Any]) -> list[Node]:
        lists = {}
        for node, start, size in zip(
            tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
        ):
            lists[node] = ~_code_list(tree["categories"][start : start + size])
            lists[node][MISSING] = bool(tree["default_left"][node])
        found = []
        for place, left in enumerate(tree["left_children"]):
            condition = np.float32(tree["split_conditions"][place])
            if left < 0:
                found.append(Node(value=float(condition)))
                continue
            # It goes left below a threshold of single precision, which is at most the number before.
            below = float(np.nextafter(condition, np.float32(-np.inf)))
            children = int(left), int(tree["right_children"][place])
            found.append(Node(0.0, children, int(tree["split_indices"][place]), below, lists.get(place)))
        return found

    trees = model["gradient_booster"]["model"]["trees"]
    return Trees.of((nodes(tree) for tree in trees), float(np.log(mean / (1 - mean))))


BACKENDS = {"sklearn": _sklearn, "lightgbm": _lightgbm, "xgboost": _xgboost}


def _code_list(codes: Sequence[int]) -> NDArray[np.bool_]:
    listed = np.zeros(MISSING + 1, dtype=bool)
    listed[list(codes)] = True
    return listed
