"""Features in the order in which SHAP and LIME find them important: the explanations that debates are held against.

Lundberg and Lee (2017), "A Unified Approach to Interpreting Model Predictions"; Ribeiro, Singh and Guestrin (2016),
"Why Should I Trust You?". Both explain the probability of one action, such as that of softmax(Q); a debater that cites
the features in this order is ``debaters.FixedEvidence``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InputError, require

Probabilities = Callable[[Tensor], Tensor]
"""``(N, 25)`` from normalised states ``(N, 44)``."""
By = Literal["value", "size"]
"""The features that speak most for the action first, or those of the largest attribution of either sign."""
_CHUNK = 64


@torch.no_grad()
def shap_order(
    function: Probabilities,
    background: Tensor,
    state: Tensor,
    action: Tensor,
    *,
    by: By = "value",
    permutations: int = 1,
    seed: int = 0,
    progress: Callable[[float, str], object] | None = None,
) -> Tensor:
    """Shapley values of the features, sampled over permutations.

    Args:
        function: what is explained.
        background: ``(M, 44)``; absent features take their values from these rows, all of which are used.
        state: ``(N, 44)``.
        action: ``(N,)`` int64 in 0..24, whose probability is explained.
        by: how the features are ordered.
        permutations: forward and backward pairs of permutations; each takes 89 M evaluations a state.
        seed: of the permutations.
        progress: told the fraction done and a message.

    Returns:
        ``(N, 44)`` int64, the most important feature first.

    Raises:
        MissingExtra: the package shap is not installed.
        InputError: shapes that do not fit.
    """
    _check(background, state, action)
    shap = require("shap", "explanations")
    features = state.shape[1]
    masker = shap.maskers.Independent(_array(background), max_samples=len(background))
    explainer = shap.explainers.Permutation(_numpy(function), masker, seed=seed)
    evaluations = permutations * (2 * features + 1)
    values = torch.empty(state.shape, dtype=torch.float64)
    for start in range(0, len(state), _CHUNK):
        rows = slice(start, start + _CHUNK)
        explained = explainer(_array(state[rows]), max_evals=evaluations, silent=True)
        chosen = action[rows].cpu()
        values[rows] = torch.from_numpy(explained.values)[torch.arange(len(chosen)), :, chosen].double()
        if progress is not None:
            progress(min(1.0, (start + _CHUNK) / len(state)), "SHAP")
    return _order(values, by).to(state.device)


@torch.no_grad()
def lime_order(
    function: Probabilities,
    background: Tensor,
    state: Tensor,
    action: Tensor,
    *,
    by: By = "value",
    samples: int = 1000,
    seed: int = 0,
    progress: Callable[[float, str], object] | None = None,
) -> Tensor:
    """Coefficients of a linear model fitted around each state, of features cut at their quartiles.

    Args:
        function: what is explained.
        background: ``(M, 44)``, of which the quartiles and spreads are taken.
        state: ``(N, 44)``.
        action: ``(N,)`` int64 in 0..24, whose probability is explained.
        by: how the features are ordered.
        samples: states drawn around each state.
        seed: of the draws.
        progress: told the fraction done and a message.

    Returns:
        ``(N, 44)`` int64, the most important feature first.

    Raises:
        MissingExtra: the package lime is not installed.
        InputError: shapes that do not fit.
    """
    _check(background, state, action)
    tabular = require("lime.lime_tabular", "explanations")
    explainer = tabular.LimeTabularExplainer(_array(background), feature_selection="none", random_state=seed)
    values = torch.zeros(state.shape, dtype=torch.float64)
    predict = _numpy(function)
    for row, (one, chosen) in enumerate(zip(_array(state), action.tolist(), strict=True)):
        explained = explainer.explain_instance(
            one, predict, labels=(chosen,), num_features=state.shape[1], num_samples=samples
        )
        for feature, weight in explained.as_map()[chosen]:
            values[row, feature] = float(weight)
        if progress is not None:
            progress((row + 1) / len(state), "LIME")
    return _order(values, by).to(state.device)


def _numpy(function: Probabilities) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    def probabilities(states: NDArray[Any]) -> NDArray[np.float64]:
        return function(torch.from_numpy(np.asarray(states, np.float32))).double().cpu().numpy()

    return probabilities


def _array(states: Tensor) -> NDArray[np.float64]:
    return states.double().cpu().numpy()


def _order(values: Tensor, by: By) -> Tensor:
    return (values if by == "value" else values.abs()).argsort(stable=True, dim=1, descending=True)


def _check(background: Tensor, state: Tensor, action: Tensor) -> None:
    if state.dim() != 2 or background.shape[1:] != state.shape[1:] or not len(background):
        raise InputError(
            f"background {tuple(background.shape)}, state {tuple(state.shape)}: must be (M, F), M > 0, and (N, F)"
        )
    if action.shape != state.shape[:1]:
        raise InputError(f"action of shape {tuple(action.shape)}: must be ({len(state)},)")
