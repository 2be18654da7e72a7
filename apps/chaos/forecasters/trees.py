"""Forecasters by ensembles of decision trees on the lags of all channels, one step ahead, rolled out."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitted, Fitting, Forecaster
from apps.chaos.forecasters.forest import Forest, Trees, flatten
from core.errors import require


class TreeForecaster(Forecaster):
    """A forecaster of the next sample from the last ones by trees.

    A library grows the trees of each series; the roll-out reads them as tensors, for all series at once. An interrupted
    fit keeps the trees of the series that were done.
    """

    lags: int = Field(default=10, ge=1)
    """Samples that the trees see."""

    grid: ClassVar[Mapping[str, Sequence[Any]]] = {"lags": (3, 5, 10, 25)}
    together: ClassVar[bool] = False

    @property
    def shortest(self) -> int:
        """The lags, and ten."""
        return self.lags + 10

    @abstractmethod
    def grow(self, lagged: np.ndarray, following: np.ndarray, seed: int) -> Trees:
        """Grow the trees that predict ``following`` ``(N, D)`` from ``lagged`` ``(N, lags D)``, oldest lag first."""

    def fit(self, train: Tensor, fitting: Fitting) -> Fitted:
        """Grow the trees of each series, seeded with its seed."""
        self.check(train.shape[1])
        models: list[Trees | None] = []
        for number, series in enumerate(train.cpu().double()):
            checkpoint = fitting.keep(f"{self.kind}_{number}")
            trees: Trees | None = checkpoint.load()
            if trees is None and series.isfinite().all():
                lagged = series.unfold(0, self.lags, 1)[:-1].mT.flatten(1)
                trees = self.grow(lagged.numpy(), series[self.lags :].numpy(), fitting.seeds[number])
                checkpoint.save(trees)
            models.append(trees)
            if fitting.progress is not None:
                fitting.progress((number + 1) / len(train), f"{self.kind}: series {number + 1} of {len(train)}")
        window = train[:, -self.lags :].double()
        grown = [number for number, trees in enumerate(models) if trees is not None]
        if not grown:
            return FittedTrees(None, window, grown)
        forest = Forest.join([trees for trees in models if trees is not None], train.device)
        return FittedTrees(forest, window, grown)


@dataclass
class FittedTrees(Fitted):
    """The trees of the series that have any, and the last samples.

    Attributes:
        forest: of the series ``grown``; None if there are none.
        window: ``(G, lags, D)``.
        grown: numbers of the series with trees.
    """

    forest: Forest | None
    window: Tensor
    grown: Sequence[int]
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)``; NaN for a series without trees."""
        series, lags, channels = self.window.shape
        out = self.window.new_full((series, horizon, channels), torch.nan)
        if self.forest is None:
            return out
        index = torch.tensor(self.grown, device=out.device)
        history = self.window.new_empty(len(index), lags + horizon, channels)
        history[:, :lags] = self.window[index]
        for step in range(horizon):
            history[:, lags + step] = self.forest.predict(history[:, step : step + lags].flatten(1))
        out[index] = history[:, lags:]
        return out


class RandomForest(TreeForecaster):
    """A random forest of 100 trees with all channels in a leaf, by scikit-learn.

    Breiman (2001), Machine Learning 45, 5.
    """

    kind: Literal["random_forest"] = "random_forest"

    packages: ClassVar[Sequence[tuple[str, str]]] = (("sklearn", "chaos"),)

    def grow(self, lagged: np.ndarray, following: np.ndarray, seed: int) -> Trees:
        """Grow the trees; the prediction is their mean."""
        model = require("sklearn.ensemble", "chaos").RandomForestRegressor(
            100, random_state=seed, n_jobs=torch.get_num_threads()
        )
        # A forest of one output takes a vector.
        model.fit(lagged, following if following.shape[1] > 1 else following[:, 0])
        trees = []
        for estimator in model.estimators_:
            tree = estimator.tree_
            threshold = _at_most(tree.threshold)
            trees.append((tree.feature, threshold, tree.children_left, tree.children_right, tree.value[:, :, 0] / 100))
        return flatten([trees], np.zeros(following.shape[1]))


class XGBoost(TreeForecaster):
    """Gradient boosting with xgboost's defaults, one model for each channel.

    Chen and Guestrin (2016), KDD, 785.
    """

    kind: Literal["xgboost"] = "xgboost"

    packages: ClassVar[Sequence[tuple[str, str]]] = (("xgboost", "gbdt"),)

    def grow(self, lagged: np.ndarray, following: np.ndarray, seed: int) -> Trees:
        """Grow the trees; the prediction is their sum on top of each channel's base score."""
        # One thread: the order in which several add up histograms may change the last bits of a split.
        model = require("xgboost", "gbdt").XGBRegressor(random_state=seed, n_jobs=1).fit(lagged, following)
        learner = json.loads(bytes(model.get_booster().save_raw("json")))["learner"]
        outputs = following.shape[1]
        groups: list[list[Any]] = [[] for _ in range(outputs)]
        grown = learner["gradient_booster"]["model"]
        for output, tree in zip(grown["tree_info"], grown["trees"], strict=True):
            left, right = np.asarray(tree["left_children"]), np.asarray(tree["right_children"])
            # The condition of a leaf is its value; that of a split is the least value that goes right.
            condition = np.asarray(tree["split_conditions"], dtype=np.float32)
            threshold = np.nextafter(condition, np.float32(-np.inf))
            groups[output].append((np.asarray(tree["split_indices"]), threshold, left, right, condition[:, None]))
        base = np.atleast_1d(json.loads(learner["learner_model_param"]["base_score"]))
        return flatten(groups, np.broadcast_to(base, outputs))


class HistGradientBoosting(TreeForecaster):
    """Gradient boosting on histograms with scikit-learn's defaults, one model for each channel."""

    kind: Literal["hist_gradient_boosting"] = "hist_gradient_boosting"

    packages: ClassVar[Sequence[tuple[str, str]]] = (("sklearn", "chaos"),)

    def grow(self, lagged: np.ndarray, following: np.ndarray, seed: int) -> Trees:
        """Grow the trees; the prediction is their sum on top of each channel's mean."""
        ensemble = require("sklearn.ensemble", "chaos")
        groups, base = [], []
        for target in following.T:
            model = ensemble.HistGradientBoostingRegressor(random_state=seed, early_stopping=False).fit(lagged, target)
            # scikit-learn shows these trees nowhere else; a test compares our predictions with its own.
            grown = [iteration[0].nodes for iteration in model._predictors]
            groups.append(
                [
                    (
                        nodes["feature_idx"],
                        nodes["num_threshold"],
                        nodes["left"],
                        nodes["right"],
                        nodes["value"][:, None],
                    )
                    for nodes in grown
                ]
            )
            base.append(np.asarray(model._baseline_prediction).item())
        return flatten(groups, np.asarray(base))


def _at_most(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 at or below each float64: no float32 lies between them."""
    nearest = threshold.astype(np.float32)
    return np.where(nearest > threshold, np.nextafter(nearest, np.float32(-np.inf)), nearest)
