"""Training of forecasters: many networks at once against one by one and against darts, and what each kind costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from apps.chaos.fitting import ScaledFitted, fit_scaled
from apps.chaos.forecasters import FORECASTERS, Fitting, Forecaster
from apps.chaos.forecasters.darts_models import Darts
from apps.chaos.forecasters.deep import DeepForecaster, NBeats
from benchmarks.chaos_reservoir import SAMPLES, lorenz
from benchmarks.clock import Clock, spread
from benchmarks.turns import milliseconds, ratio
from core.errors import MissingExtra
from simulators.chaos import Sampling, load, sample

SMALL = NBeats(stacks=4, width=64, look_back=25)
ARGUMENTS: dict[str, JsonValue] = {"num_stacks": 4, "layer_widths": 64}
"""Of the same networks in darts."""
SERIES, HORIZON = 30, 200
LIMIT = 2.0
"""Seconds after which a fit is stopped and the rest is extrapolated."""


class Stopped(Exception):
    """A fit has run for long enough."""


class Plain(nn.Module):
    """The same N-BEATS for one series, as one would write it."""

    def __init__(self, settings: NBeats, channels: int) -> None:
        super().__init__()
        inputs, width = settings.look_back * channels, settings.width
        sizes = [inputs] + [width] * settings.layers
        self.blocks, self.theta, self.backcast, self.forecast = (nn.ModuleList() for _ in range(4))
        for _ in range(settings.stacks):
            pairs = pairwise(sizes)
            self.blocks.append(nn.Sequential(*(x for pair in pairs for x in (nn.Linear(*pair), nn.ReLU()))))
            self.theta.append(nn.Linear(width, 2 * settings.theta, bias=False))
            self.backcast.append(nn.Linear(settings.theta, inputs))
            self.forecast.append(nn.Linear(settings.theta, channels))

    def forward(self, windows: Tensor) -> Tensor:
        """The sample ``(B, D)`` after each window ``(B, L, D)``."""
        x, total = windows.flatten(1), torch.zeros(())
        for block, theta, backcast, forecast in zip(self.blocks, self.theta, self.backcast, self.forecast, strict=True):
            back, ahead = theta(block(x)).chunk(2, 1)
            x, total = x - backcast(back), total + forecast(ahead)
        return total


def main() -> None:
    """Print the figures beside their targets."""
    began = time.perf_counter()
    series = lorenz()
    for batch in (32, 64):
        together_and_alone(SMALL.model_copy(update={"batch": batch}), series)
    against_darts(series)
    costs()
    print(f"  {time.perf_counter() - began:.0f} s")


def together_and_alone(settings: NBeats, series: Tensor) -> None:
    """A step of all networks against a step of each."""
    alone = [grouped_step(settings, series[i : i + 1]) for i in range(SERIES)]
    plain, fused = ([plain_step(settings, one.float(), fused) for one in series] for fused in (False, True))
    works = {
        "together": grouped_step(settings, series),
        "torch.nn, one by one": lambda: [step() for step in plain],
        "torch.nn with fused Adam": lambda: [step() for step in fused],
        "groups of one": lambda: [step() for step in alone],
    }
    took = milliseconds(works, 5, calls=3)
    print(f"  N-BEATS 4 x 64, L 25, batch {settings.batch}, {SERIES} series, one thread: ms a step of all")
    print(f"    together {spread(took['together'])}")
    for name in list(works)[1:]:
        print(f"    {name} {spread(took[name])} = {ratio(took[name], took['together'])} (target 5)", flush=True)


def grouped_step(settings: NBeats, series: Tensor) -> Callable[[], None]:
    """A step of training networks for ``series`` ``(G, T, D)`` at once."""
    train = series.float().contiguous()
    network = settings.untrained(train, Fitting(tuple(range(len(series)))))
    # As core.nn.adam.minimise takes them.
    return _step(settings.loss(network, train, 0), network, settings.batches(train), fused=True)


def plain_step(settings: NBeats, series: Tensor, fused: bool) -> Callable[[], None]:
    """A step of training a module of torch for one series ``(T, D)``, with Adam as it is by default or fused."""
    network = Plain(settings, series.shape[1])
    windows, targets = series.unfold(0, settings.look_back, 1)[:-1].mT, series[settings.look_back :]

    def loss(step: int) -> Tensor:
        chosen = slice(step * settings.batch, (step + 1) * settings.batch)
        return nn.functional.mse_loss(network(windows[chosen]), targets[chosen])

    return _step(loss, network, settings.batches(series[None]), fused)


def _step(loss: Callable[[int], Tensor], network: nn.Module, batches: int, fused: bool) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), fused=fused)
    done = 0

    def step() -> None:
        nonlocal done
        optimizer.zero_grad()
        loss(done % (batches - 1)).backward()  # all but the short batch
        optimizer.step()
        done += 1

    return step


def against_darts(series: Tensor) -> None:
    """Milliseconds that an epoch adds to a fit, for a step of one series."""
    found: dict[str, float] = {}
    batches = SMALL.batches(series)
    try:
        for name, fit, count in (("darts", darts_fit(series[:1]), 1), ("ours", grouped_fit(series), SERIES)):
            fit(1)
            few, many = _seconds(fit, 1), _seconds(fit, 4)
            found[name] = 1000 * (many - few) / (3 * batches * count)
    except MissingExtra as missing:
        print(f"  darts: {missing}")
        return
    compared = found["darts"] / found["ours"]
    print(
        f"  the same, batch 32, ms a step of one series: darts {found['darts']:.3g}, ours {found['ours']:.3g}", end=""
    )
    print(f" = {compared:.3g} x", flush=True)


def darts_fit(series: Tensor) -> Callable[[int], object]:
    """A fit of darts' NBEATSModel over some epochs."""
    settings = Darts(model="NBEATSModel", look_back=SMALL.look_back, arguments=ARGUMENTS)
    return lambda epochs: settings.model_copy(update={"epochs": epochs}).fit(series, Fitting((0,)))


def grouped_fit(series: Tensor) -> Callable[[int], object]:
    """A fit of ours over some epochs."""
    seeds = tuple(range(len(series)))
    return lambda epochs: SMALL.model_copy(update={"epochs": epochs}).fit(series, Fitting(seeds))


def _seconds(fit: Callable[[int], object], epochs: int) -> float:
    clock = Clock()
    fit(epochs)
    return clock.seconds


def costs() -> None:
    """Wall seconds of a fit and of a forecast of one series, with the settings of the paper."""
    flow = load("Lorenz")
    series = sample(flow, 1, torch.Generator().manual_seed(0), Sampling(samples=SAMPLES, points=100))
    print(f"  one series of {SAMPLES} samples: seconds of a fit, and of a forecast of {HORIZON}; ~ extrapolated")
    for kind in FORECASTERS:
        # What needs a model or weights of the user's has no cost of its own.
        if any(field.is_required() for field in kind.model_fields.values()):
            continue
        forecaster = kind()  # type: ignore[call-arg]
        fit = partial(fit_scaled, train=series.states, seeds=(0,), dt=(series.dt,), flows=(flow,))
        try:
            print(f"    {forecaster.kind:<16} {cost(forecaster, fit)}", flush=True)
        except MissingExtra as missing:
            print(f"    {forecaster.kind:<16} {missing}", flush=True)


def cost(forecaster: Forecaster, fit: Callable[..., ScaledFitted]) -> str:
    """Wall seconds of fit and forecast as text; a fit that takes long is stopped on its way."""
    shares: list[tuple[float, float]] = []
    began = time.perf_counter()

    def progress(share: float, _: str) -> None:
        shares.append((share, time.perf_counter() - began))
        if share < 1 and shares[-1][1] > LIMIT:
            raise Stopped

    try:
        fitted = fit(forecaster, progress=progress)
        taken = f"{time.perf_counter() - began:.3g}"
    except Stopped:
        taken = f"~{extrapolated(shares):.3g}"
        if not isinstance(forecaster, DeepForecaster):
            return taken
        # A forecast costs the same whatever the weights are.
        fitted = fit(forecaster.model_copy(update={"epochs": 1, "batch": SAMPLES}))
    began = time.perf_counter()
    fitted.forecast(HORIZON)
    return f"{taken}, {time.perf_counter() - began:.3g}"


def extrapolated(shares: Sequence[tuple[float, float]]) -> float:
    """Seconds of the whole, from the shares done and when; the first step, which warms up, counts once."""
    (first, start), (last, end) = shares[0], shares[-1]
    if last == first:
        return end / last
    rate = statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(shares))
    return start + rate * (1 - first)


if __name__ == "__main__":
    main()
