"""The truth of all actions of a payment, rows a CPU second: the batched simulator against plain NumPy."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import expit

from benchmarks.clock import spread
from benchmarks.turns import milliseconds, ratio
from core.simulation import tree
from simulators.payments import PaymentContext, Payments, Portfolio

ROWS = 100_000


def numpy_truth(portfolio: Portfolio, context: PaymentContext, failing: np.ndarray | float = 1.0) -> np.ndarray:
    """``(n, K)`` probability of approval, one action after the other; ``failing`` multiplies the technical success."""
    p = {name: value.numpy() for name, value in vars(portfolio).items()}
    x = {name: column.numpy() for name, column in context.columns().items()}
    issuer, merchant, country, abroad = x["issuer"], x["merchant"], x["country"], x["cross_border"]
    la = x["log_amount"] - 3.6
    expired, prepaid = (x["expiry_days"] < 0).astype(la.dtype), (x["funding"] == 2).astype(la.dtype)
    base = 3.0 + p["issuer"][issuer] + p["merchant"][merchant] - 0.25 * la - 0.35 * abroad - 0.5 * prepaid
    base += -0.45 * x["attempt"] - 0.9 * expired + 0.2 * np.cos(2 * np.pi * (x["hour"] - 14) / 24)
    effect = (p["issuer_flag"][issuer] + p["merchant_flag"][merchant]).T
    for f, e in enumerate((0.45 * la, 0.15 * abroad, 1.2 * expired, -0.3 * abroad, 0.5 * abroad)):
        effect[f] += e
    challenge = expit(2.6 + p["challenge"][country] - 0.2 * la)
    message, route = p["technical"][issuer].T
    flags = len(effect)
    result = np.empty((2**flags, len(la)), la.dtype)
    for action in range(2**flags):
        on = [f for f in range(flags) if action >> f & 1]
        z = base + sum(effect[f] for f in on)
        z += sum(p["pair"][2**f + 2**h] for f in on for h in on if f < h)
        technical = 4.0 + (3 in on) * message + (4 in on) * route - (3 in on and 4 in on)
        completed = challenge if 0 in on else 1.0
        result[action] = expit(z) * expit(technical) * failing * completed
    return result.T


def compare(dtype: torch.dtype) -> None:
    """Print both rates, taken in turns, their ratio and how far the answers are apart."""
    world = Payments(dtype=dtype)
    state = world.reset(ROWS, torch.Generator().manual_seed(0))
    works = {"ours": lambda: world.probabilities(state), "NumPy": lambda: numpy_truth(world.portfolio, state)}
    took = milliseconds(works, 7)
    print(f"  {world.sizes.actions} actions, {str(dtype)[6:]}")
    for name, each in took.items():
        print(f"    {name:<6} {spread([1000 * ROWS / ms for ms in each])} rows/s")
    print(f"    NumPy's time over ours: {ratio(took['NumPy'], took['ours'])}")
    widened = tree.map_tensors(lambda x: x.double() if x.is_floating_point() else x, state)
    exact = numpy_truth(world.portfolio.to("cpu", torch.float64), widened)
    print(
        f"    largest difference from NumPy in float64: {np.abs(world.probabilities(state).numpy() - exact).max():.1e}"
    )


def main() -> None:
    """Compare in both precisions."""
    for dtype in (torch.float64, torch.float32):
        compare(dtype)


if __name__ == "__main__":
    main()
