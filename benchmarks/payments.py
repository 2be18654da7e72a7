"""Payments: batched decisions against Vowpal Wabbit's squarecb, and the generation loop against its Python loop.

Both decide the same payments, whose available actions differ; ours scores with the factored oracle of the CPU study, VW
with its linear model over the pairs of payment and intervention. One core each, in turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apps.payments.exploration import Exploration
from apps.payments.generations import GenerationLoop
from apps.payments.oracles import FactoredSettings, Oracle, Rows
from apps.payments.scenario import Arm, Scenario
from benchmarks.turns import milliseconds, ratio
from core.bandits import inverse_gap_weighting, sample_actions
from core.errors import MissingExtra, require
from simulators.payments import CATEGORIES, FLAGS, NUMERICS, PaymentContext, Payments, PaymentState, dense_mask

BLOCK = 1 << 13
PREDICTED, LOOPED, LEARNED = 2_000, 2_000, 5_000
VW_OPTIONS = "--cb_explore_adf --squarecb --cb_type mtr -q pa --quiet"
GAMMA = 3000.0


def learned_oracle(world: Payments, rows: int = 15_000) -> tuple[Oracle[Any], PaymentState, Tensor, Tensor]:
    """An oracle fitted to uniform decisions, and these: payments, actions and rewards."""
    generator = torch.Generator().manual_seed(0)
    state = world.reset(rows, generator)
    mask = dense_mask(state.allowed, state.forced, world.sizes.flags)
    chance = mask / mask.sum(1, keepdim=True, dtype=world.dtype)
    action = sample_actions(chance, mask, torch.rand(rows, generator=generator, dtype=world.dtype)).action
    reward = world.step(state, action, world.noise(rows, generator)).reward
    fitted = FactoredSettings().fit(Rows(state, action, reward), world.sizes)
    return fitted, state, action, reward


def decide(oracle: Oracle[Any], context: PaymentContext, mask: Tensor, uniforms: Tensor) -> Tensor:
    """Score, weigh and draw a block."""
    scores = oracle.predict_all(context, torch.float32)
    return sample_actions(inverse_gap_weighting(scores, mask, GAMMA), mask, uniforms).action


def batched(
    oracle: Oracle[Any], world: Payments, rows: int, device: str = "cpu", block: int = BLOCK
) -> Callable[[], None]:
    """Decide ``rows`` payments block by block; contexts and masks are ready, as VW's lines are."""
    state = world.reset(rows, torch.Generator().manual_seed(1))
    context = PaymentContext(**state.columns()).to(device, torch.float32)
    mask = dense_mask(state.allowed, state.forced, world.sizes.flags).to(device)
    blocks = [(context.take(slice(i, i + block)), mask[i : i + block]) for i in range(0, rows, block)]
    generator = torch.Generator(device).manual_seed(2)

    def run() -> None:
        for part, available in blocks:
            decide(oracle, part, available, torch.rand(len(part), generator=generator, device=device))

    return run


def vw_lines(state: PaymentState, flags: int) -> list[list[str]]:
    """Each payment in VW's text format: a shared line, and a line for each available action."""
    mask = dense_mask(state.allowed, state.forced, flags).tolist()
    columns = {name: column.tolist() for name, column in state.columns().items()}
    actions = [" ".join(FLAGS[f] for f in range(flags) if a >> f & 1) or "none" for a in range(2**flags)]
    found = []
    for i, row in enumerate(mask):
        ids = " ".join(f"{name}={columns[name][i]}" for name in CATEGORIES)
        numbers = " ".join(f"{name}:{columns[name][i]:.4g}" for name in NUMERICS)
        found.append([f"shared |p {ids} {numbers}", *(f"|a {actions[a]}" for a, free in enumerate(row) if free)])
    return found


def vw_learned(state: PaymentState, action: Tensor, reward: Tensor, flags: int) -> Any:
    """A VW workspace that has learned from logged decisions."""
    vw = require("vowpalwabbit", "vw").Workspace(VW_OPTIONS)
    mask = dense_mask(state.allowed, state.forced, flags)
    place = (mask.cumsum(1).gather(1, action[:, None]).squeeze(1)).tolist()
    chance = (1 / mask.sum(1)).tolist()
    for i, lines in enumerate(vw_lines(state, flags)):
        lines[place[i]] = f"0:{-float(reward[i])}:{chance[i]:.6f} {lines[place[i]]}"
        vw.learn(lines)
    return vw


def vw_loop(vw: Any, lines: list[list[str]]) -> Callable[[], None]:
    """Decide and learn one payment after the other, as VW's Python loop does."""
    generator = torch.Generator().manual_seed(3)

    def run() -> None:
        luck = torch.rand(len(lines), generator=generator).tolist()
        for payment, u in zip(lines, luck, strict=True):
            chance = vw.predict(payment)
            chosen, total = 0, chance[0]
            while total < u and chosen < len(chance) - 1:
                chosen += 1
                total += chance[chosen]
            labelled = list(payment)
            labelled[1 + chosen] = f"0:{-float(u < 0.9)}:{chance[chosen]:.6f} {labelled[1 + chosen]}"
            vw.learn(labelled)

    return run


def generation_loop(payments: int) -> Callable[[], None]:
    """One generation of our loop: decide, log, learn; the evaluation of models left out, as VW's loop has none."""
    scenario = Scenario(name="loop", payments=payments, generations=1000)
    loop = GenerationLoop(scenario, Arm(name="igw", exploration=Exploration(rule="igw", gamma=GAMMA)), 0, measure=False)
    loop.step()
    return loop.step


def main() -> None:
    """Print decisions per second and the ratios."""
    world = Payments(dtype=torch.float64)
    oracle, state, action, reward = learned_oracle(world)
    rows = 40 * BLOCK
    works: dict[str, Callable[[], object]] = {"ours": batched(oracle, world, rows)}
    counts = {"ours": rows}
    try:
        vw = vw_learned(state.take(slice(0, LEARNED)), action[:LEARNED], reward[:LEARNED], world.sizes.flags)
    except MissingExtra as missing:
        print(missing)
    else:
        asked = vw_lines(world.reset(PREDICTED, torch.Generator().manual_seed(1)), world.sizes.flags)
        works["VW predict, ready lines"] = lambda: [vw.predict(lines) for lines in asked]
        works["VW predict and learn"] = vw_loop(vw, asked[:LOOPED])
        works["our generation loop"] = generation_loop(15_000)
        counts |= {"VW predict, ready lines": PREDICTED, "VW predict and learn": LOOPED, "our generation loop": 15_000}
    took = milliseconds(works, 5)
    for name, times in took.items():
        speed = 1000 * counts[name] / statistics.median(times)
        print(f"{name}: {speed:,.0f} decisions/s of CPU time")
    each = {name: [t / counts[name] for t in times] for name, times in took.items()}
    if len(works) > 1:
        print(f"predict, VW over ours: {ratio(each['VW predict, ready lines'], each['ours'])} (target: at least 100)")
        print(f"loop, VW over ours: {ratio(each['VW predict and learn'], each['our generation loop'])} (target: 4)")
    if torch.cuda.is_available():
        on_device = 1 << 20
        run = batched(oracle, world, 4 * on_device, "cuda", on_device)
        took = milliseconds({"GPU": run}, 5, device="cuda")
        print(f"GPU: {1000 * 4 * on_device / statistics.median(took['GPU']):,.0f} decisions/s (target: 5e6)")


if __name__ == "__main__":
    main()
