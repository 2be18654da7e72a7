"""Echo state networks of 30 series: ours, all at once, against reservoirpy's, series by series.

The work is the same: a reservoir of 500 neurons made before the clock starts, 1000 samples of three channels to fit, of
which 100 warm it up, and 200 steps in closed loop; the same matrices, so that the forecasts agree.

reservoirpy is not a dependency of this project: pip install reservoirpy==0.4.2
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from apps.chaos.forecasters.esn import ESN, reservoir
from apps.chaos.forecasters.forecaster import Fitting
from benchmarks.clock import spread
from benchmarks.turns import milliseconds, ratio

SERIES, SAMPLES, HORIZON, WARM_UP = 30, 1000, 200, 100
SETTINGS, FITTING = ESN(), Fitting(seeds=tuple(range(SERIES)))


def lorenz() -> Tensor:
    """Series ``(SERIES, SAMPLES, 3)`` of the Lorenz system by RK4, each scaled to mean 0 and standard deviation 1."""

    def rate(y: Tensor) -> Tensor:
        u, v, w = y.unbind(1)
        return torch.stack([10 * (v - u), u * (28 - w) - v, u * v - 8 / 3 * w], 1)

    step, path = 0.015, []
    y = torch.randn(SERIES, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(SAMPLES + 300):
        a = rate(y)
        b = rate(y + step / 2 * a)
        c = rate(y + step / 2 * b)
        y = y + step / 6 * (a + 2 * b + 2 * c + rate(y + step * c))
        path.append(y)
    series = torch.stack(path[300:], 1)
    return (series - series.mean(1, keepdim=True)) / series.std(1, keepdim=True)


def ours(train: Tensor) -> Tensor:
    """Forecasts ``(SERIES, HORIZON, 3)``."""
    return SETTINGS.fit(train, FITTING).forecast(HORIZON)


def main() -> None:
    try:
        from reservoirpy.nodes import Reservoir, Ridge
    except ImportError as error:
        print(f"reservoirpy is not there ({error}).")
        print(__doc__.split("\n\n", 1)[1])
        return
    from scipy.sparse import csr_array

    train = lorenz()
    parts = reservoir(SETTINGS, 3, FITTING.seed)
    w, w_in = csr_array(parts.recurrent.numpy()), csr_array(parts.input.numpy())
    network = Reservoir(W=w, Win=w_in, bias=parts.bias.numpy()[:, 0], lr=SETTINGS.leak)

    def theirs() -> np.ndarray:
        found = []
        for series in train.numpy():
            if network.initialized:
                network.reset()
            states = network.run(series[:-1])
            readout = Ridge(ridge=SETTINGS.ridge).fit(states[WARM_UP:], series[WARM_UP + 1 :])
            sample, path = series[-1], []
            for _ in range(HORIZON):
                sample = readout(network(sample))
                path.append(sample)
            found.append(path)
        return np.array(found)

    apart = np.abs(ours(train).numpy() - theirs())
    times = milliseconds({"ours": lambda: ours(train), "reservoirpy": theirs}, 7)
    print(f"{SERIES} networks of {SETTINGS.neurons} neurons, {SAMPLES} samples and {HORIZON} steps, CPU ms")
    for name, took in times.items():
        print(f"  {name:11s} {spread(took)}")
    print(f"  reservoirpy's time over ours: {ratio(times['reservoirpy'], times['ours'])}")
    print(f"largest difference of the first 10 steps' forecasts: {apart[:, :10].max():.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
