"""Simulated patients and off-policy estimates a CPU second: batches against one patient at a time.

The peer of the simulator is the same world as a gymnasium environment, one patient after the other, as most simulators
of sepsis are used; that of weighted importance sampling is a loop of NumPy over the resamples of its bootstrap.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch

import simulators  # noqa: F401 (registers the environments)
from benchmarks.clock import spread
from benchmarks.turns import milliseconds, ratio
from core.offline import evaluate_policy
from simulators.sepsis import ACTIONS, Physician, Sepsis44, simulate_cohort

PATIENTS = (3000, 12_000)
STEPS = 18
SINGLE_STEPS = 500
LOGGED, RESAMPLES = 2500, 1000


def treat(patients: int, *, physician: bool) -> None:
    """One stay of so many patients, all at once, under the physician or under given actions."""
    world = Sepsis44()
    generator = torch.Generator().manual_seed(0)
    state, doctor = world.reset(patients, generator), Physician()
    given = torch.randint(ACTIONS, (STEPS, patients), generator=generator)
    for action in given:
        noise = world.noise(patients, generator)
        seen = world.observe(state, noise)
        state = world.step(state, doctor(seen, state) if physician else action, noise).state


def one_at_a_time() -> None:
    """The gymnasium environment, a new patient whenever one's stay ends."""
    env = gymnasium.make("Sepsis44-v0")
    env.reset(seed=0)
    for i in range(SINGLE_STEPS):
        *_, terminated, truncated, _ = env.step(i % ACTIONS)
        if terminated or truncated:
            env.reset()


def simulator() -> None:
    """Print patient-steps a CPU second, observations included."""
    works = {f"batch of {n}": (lambda n=n: treat(n, physician=False)) for n in PATIENTS}
    works |= {f"batch of {n}, physician too": (lambda n=n: treat(n, physician=True)) for n in PATIENTS}
    steps = {name: STEPS * PATIENTS[i % 2] for i, name in enumerate(works)} | {"gymnasium": SINGLE_STEPS}
    took = milliseconds(works | {"gymnasium": one_at_a_time}, 5)
    each = {name: [ms / steps[name] for ms in times] for name, times in took.items()}
    for name in took:
        print(f"  {name:<28} {spread([1000 / ms for ms in each[name]])} patient-steps/s")
    for name in works:
        print(f"  gymnasium's time a step over that of the {name}: {ratio(each['gymnasium'], each[name])}")


def weighted_importance_sampling() -> None:
    """Print the time of one estimate with its interval, against a loop over the resamples."""
    cohort = simulate_cohort(Sepsis44(), LOGGED, 0)
    log = cohort.dataset(cohort.rewards())
    target = torch.full((len(log), ACTIONS), 1 / ACTIONS)

    def plain() -> None:
        behaviour = log.behaviour_probability[torch.arange(len(log)), log.actions].double().numpy()
        episode, rng = log.episode_index.numpy(), np.random.default_rng(0)
        weight = np.exp(np.bincount(episode, np.log(1 / ACTIONS / behaviour)))
        outcome = cohort.outcome.double().numpy()
        for _ in range(RESAMPLES):
            rows = rng.integers(LOGGED, size=LOGGED)
            (weight[rows] * outcome[rows]).sum() / weight[rows].sum()

    works = {"ours": lambda: evaluate_policy(log, target, estimators=["WIS"], resamples=RESAMPLES), "NumPy": plain}
    took = milliseconds(works, 5)
    for name, times in took.items():
        print(f"  WIS of {LOGGED} patients, {RESAMPLES} resamples, {name:<6} {spread(times)} ms")
    print(f"  NumPy's time over ours: {ratio(took['NumPy'], took['ours'])}")


def main() -> None:
    """Run both."""
    simulator()
    weighted_importance_sampling()


if __name__ == "__main__":
    main()
