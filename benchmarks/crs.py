"""Turns of dialogues a CPU second and their memory, against dialogues one at a time; belief and graph against peers."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable

import torch

from apps.crs.active_inference import ActiveInference
from apps.crs.evaluation import Cases, evaluate
from apps.crs.metrics import measures
from apps.crs.policies import AbsGreedy, MaxEntropy, Policy
from apps.crs.pymdp_agent import PymdpAgent, compare_with_closed_form
from apps.crs.speed import measure, peak_memory
from apps.crs.unicorn import UnicornNetwork, UnicornSettings, new_choice
from benchmarks.clock import spread
from benchmarks.one_user_at_a_time import OneUserAtATime, max_entropy
from benchmarks.turns import milliseconds, ratio
from core.errors import MissingExtra
from simulators.crs import Conversation, Embeddings, Rules
from simulators.crs.generated import PRESETS, Generated, generate

LASTFM_STAR, DEFAULT = "lastfm-star-sized", "small"
BATCH, DIALOGUES, LARGE, REPEATS = 64, 128, 512, 5
PUBLISHED = 13.7
"""Turns a CPU second of the published environment with its graph, measured once on the data of LastFM*."""


def world_of(preset: str | Generated, *, dim: int = 64, device: str = "cpu") -> Conversation:
    """Dialogues on a generated catalogue, with random embeddings of norm 1: speed does not depend on their values."""
    catalogue = generate(PRESETS[preset] if isinstance(preset, str) else preset, 0)
    generator = torch.Generator().manual_seed(0)
    counts = (catalogue.n_users, catalogue.n_items, catalogue.n_attributes)
    drawn = (torch.randn(count, dim, generator=generator) for count in counts)
    return Conversation(
        catalogue, Embeddings(*(torch.nn.functional.normalize(x) for x in drawn)), Rules(), None, device
    )


def cases_of(world: Conversation, count: int) -> Cases:
    """Test dialogues."""
    return Cases.of(world, world.catalogue.pairs("test"), 0, count)


def one_after_the_other(loop: OneUserAtATime, cases: Cases) -> int:
    """Turns of all dialogues, played one by one."""
    recommends = max_entropy(loop.rules.list_length)
    rows = zip(cases.pairs.tolist(), cases.opening.tolist(), strict=True)
    return sum(loop.play(user, target, opening, recommends)[0] for (user, target), opening in rows)


def dialogues(preset: str) -> None:
    """Print turns a CPU second of batches and of the loop, with and without its graph, in the same dialogues.

    The large batch has more dialogues.
    """
    world = world_of(preset)
    cases, more = cases_of(world, DIALOGUES), cases_of(world, LARGE)
    loops = {f"one at a time{', with graph' * g}": OneUserAtATime(world, graph=g) for g in (False, True)}
    policies: dict[str, Policy] = {"MaxEntropy": MaxEntropy(world), "AbsGreedy": AbsGreedy(world)}
    steps: dict[str, int] = {}

    def batched(name: str, policy: Policy, batch: int) -> Callable[[], None]:
        def play() -> None:
            played = evaluate(world, policy, more if batch == LARGE else cases, batch=batch)
            steps[name] = int(played["turns"].sum())

        return play

    def single(name: str, loop: OneUserAtATime) -> Callable[[], None]:
        def play() -> None:
            steps[name] = one_after_the_other(loop, cases)

        return play

    works = {
        f"{p}, batch of {b}": batched(f"{p}, batch of {b}", policies[p], b) for p in policies for b in (BATCH, LARGE)
    }
    works |= {name: single(name, loop) for name, loop in loops.items()}
    took = milliseconds(works, 3)
    each = {name: [ms / steps[name] for ms in times] for name, times in took.items()}
    shape = world.catalogue
    print(f"  {preset}: {shape.n_items} items, {shape.n_attributes} attributes, {len(shape.edges)} pairs of them")
    for name in works:
        print(f"    {name:<30} {spread([1000 / ms for ms in each[name]])} turns/CPU s")
    ours = f"MaxEntropy, batch of {BATCH}"
    for name in loops:
        print(f"    MaxEntropy {name}: time a turn over that in the batch: {ratio(each[name], each[ours])}")
    if preset == LASTFM_STAR:
        print(f"    (the published environment with its graph, on LastFM* itself: {PUBLISHED} turns/CPU s)")


def memory() -> None:
    """Print the memory of a batch of 64 on a catalogue of the size of LastFM*, in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.crs", "memory"], capture_output=True, text=True, check=True
    )
    before, after = (float(x) for x in found.stdout.split())
    print(f"  {LASTFM_STAR}, batch of {BATCH}: {after:.0f} MiB at most, {after - before:.0f} of them while playing")


def _measure_memory() -> None:
    """Two copies of a process that has made its catalogue: one does nothing, the other plays."""
    world = world_of(LASTFM_STAR)
    for policies in ([], [AbsGreedy(world), MaxEntropy(world)]):
        copy = multiprocessing.get_context("fork").Process(target=_play, args=(world, policies))
        copy.start()
        copy.join()


def _play(world: Conversation, policies: list[Policy]) -> None:
    for policy in policies:
        measure(world, policy, cases_of(world, 2 * BATCH), batch=BATCH)
    print(f"{peak_memory(world.device):.1f}", flush=True)


def belief() -> None:
    """Print the time of the expected free energies of 16 dialogues, by pymdp and in closed form."""
    world = world_of(Generated(n_users=50, n_items=256, n_types=6, n_values=8)).with_rules(on_empty="relax")
    cases = cases_of(world, 16)
    known = world.observe(world.reset_to(cases.pairs, cases.opening), None)
    try:
        agents: dict[str, ActiveInference | PymdpAgent] = {
            "closed form": ActiveInference(world),
            "pymdp": PymdpAgent(world, batch=16),
        }
    except MissingExtra as missing:
        print(f"  pymdp: skipped: {missing}")
        return

    def decide(agent: ActiveInference | PymdpAgent) -> Callable[[], None]:
        def work() -> None:
            # Both keep what they found of the last observation.
            agent.reset(16)
            agent.neg_efe(known)

        return work

    took = milliseconds({name: decide(agent) for name, agent in agents.items()}, REPEATS, calls=3)
    for name, times in took.items():
        print(f"  256 items, 48 attributes, {name:<12} {spread([16_000 / ms for ms in times])} decisions/CPU s")
    print(f"  pymdp's time over that of the closed form: {ratio(took['pymdp'], took['closed form'])}")
    found = compare_with_closed_form(world, cases, turns=2)["difference"]
    print(f"  largest difference of {int(found.notnull().sum())} free energies: {float(found.max()):.1e} nats")


def graph() -> None:
    """Print the time of UNICORN's forward pass for 128 dialogues of the default catalogue, after two questions."""
    world, settings = world_of(DEFAULT), UnicornSettings()
    choice, generator = new_choice(world, settings), torch.Generator().manual_seed(0)
    state = choice.reset(128, generator)
    for _ in range(2):
        state = choice.step(state, torch.zeros(128, dtype=torch.int64), choice.noise(128, generator)).state
    seen = choice.observe(state)
    network = UnicornNetwork(world, settings).eval()
    scene = network.scene(seen)

    def value(what: object) -> Callable[[], None]:
        def work() -> None:
            with torch.no_grad():
                network(what)

        return work

    works = {"forward": value(seen), "of it the layers": value(scene)}
    for name, times in milliseconds(works, REPEATS, calls=3).items():
        print(f"  UNICORN, batch of 128, {name:<18} {spread(times)} ms")


def device() -> None:
    """Print turns a second of the clock of the hard catalogue, 1,024 dialogues at once, on a GPU and on the CPU."""
    if not torch.cuda.is_available():
        print("  hard on a GPU: skipped: there is none")
        return
    found: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for _ in range(REPEATS):
        for where, rates in found.items():
            world = world_of("hard", device=where)
            rates.append(measure(world, MaxEntropy(world), cases_of(world, 2048), batch=1024).per_second)
    for where, rates in found.items():
        print(f"  hard, MaxEntropy, batch of 1024, {where:<5} {spread(rates)} turns/s")
    print(f"  GPU over CPU: {ratio(found['cuda'], found['cpu'])}")


def same_game() -> None:
    """Print how both ways of playing fare on the same dialogues, which is what makes their times comparable."""
    world = world_of(DEFAULT)
    cases = cases_of(world, 400)
    batch = measures(evaluate(world, MaxEntropy(world), cases))["AT"].mean()
    single = one_after_the_other(OneUserAtATime(world), cases) / len(cases.pairs)
    print(f"  mean turns of MaxEntropy in 400 dialogues: batch {batch:.2f}, one at a time {single:.2f}")


def main() -> None:
    """Run all of them."""
    if sys.argv[1:] == ["memory"]:
        _measure_memory()
        return
    dialogues(LASTFM_STAR)
    dialogues(DEFAULT)
    same_game()
    memory()
    belief()
    graph()
    device()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
