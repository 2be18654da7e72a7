"""Rewards against libraries of edit distances; scoring, updates and decoding of the fast model; simulated clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from apps.lipreading.clips import Clips
from apps.lipreading.models import FastSettings, LipReader, build
from apps.lipreading.models.fast import FastReader
from apps.lipreading.rewards import reward
from benchmarks.clock import rates, spread
from benchmarks.turns import milliseconds, ratio
from core.errors import MissingExtra, require
from core.sequence.batch import TokenBatch
from core.sequence.edit_distance import prefix_edit_distances
from core.sequence.losses import CrossEntropy
from core.sequence.policy import draw_tokens
from core.sequence.rollouts import Prompts, Rollouts, Source, Supervised
from core.sequence.train import Objective, SequencePolicyOptimization
from core.sequence.windows import Windowed
from simulators.lips import alphabet
from simulators.lips.speakers import Speakers
from simulators.lips.speech import Speech
from simulators.lips.talking_mouth import TalkingMouth

CLIPS, PAIRS, STEPS, REPEATS = 64, 256, 32, 7


def speech_of(clips: int) -> Speech:
    """Sentences of the whole grammar, 75 frames of features each."""
    return TalkingMouth().sample(clips, torch.Generator().manual_seed(0), Speakers.draw(20, 0))


def reader() -> FastReader:
    """The fast model with fresh weights."""
    torch.manual_seed(0)
    model = build(FastSettings())
    assert isinstance(model, FastReader)
    return model.eval()


def pairs(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """256 sequences of 32 characters with their references: sentences of which a fifth of the symbols are others."""
    generator = torch.Generator().manual_seed(0)
    speech = speech_of(PAIRS)
    truth = torch.nn.functional.pad(speech.tokens, (0, max(0, STEPS - speech.tokens.shape[1])))
    other = torch.randint(3, alphabet.SIZE, (PAIRS, STEPS), generator=generator)
    wrong = (torch.rand(PAIRS, STEPS, generator=generator) < 0.2) | (truth[:, :STEPS] < 3)
    tokens = torch.where(wrong, other, truth[:, :STEPS])
    everything = tokens, torch.ones_like(tokens, dtype=torch.bool), truth, speech.text_length
    return tuple(x.to(device) for x in everything)  # type: ignore[return-value]


def rewards() -> None:
    """Print the time of the distances of all prefixes by libraries, one prefix after the other, over ours."""
    tokens, keep, truth, length = pairs()
    said, right = alphabet.decode(tokens), alphabet.decode(truth)
    spoken = [[text[: t + 1] for t in range(STEPS)] for text in said]
    found = prefix_edit_distances(tokens, keep, truth, length)
    peers = {
        "editdistance": ("editdistance", lambda module: module.eval, "at least 3"),
        "jiwer": ("jiwer", lambda module: lambda a, b: module.cer(b, a), "at least 40"),
        "rapidfuzz": ("rapidfuzz.distance.Levenshtein", lambda module: module.distance, "at least 1 / 1.3 = 0.77"),
    }
    works: dict[str, Callable[[], object]] = {"ours": lambda: prefix_edit_distances(tokens, keep, truth, length)}
    for name, (module, of, _) in peers.items():
        try:
            distance = of(require(module, "test"))
        except MissingExtra as missing:
            print(f"  {name}: skipped: {missing}")
            continue

        def loop(distance: Callable[[str, str], float] = distance) -> list[list[float]]:
            return [[distance(a, b) for a in prefixes] for prefixes, b in zip(spoken, right, strict=True)]

        if name != "jiwer":  # which strips the spaces at the ends of a prefix
            assert torch.equal(torch.tensor(loop()), found), name
        works[name] = loop
    took = milliseconds(works, REPEATS)
    print(f"  distances of {PAIRS * STEPS} prefixes, ours: {spread(took['ours'])} ms")
    for name in [name for name in peers if name in works]:
        wanted = peers[name][2]
        print(f"    {name}: {spread(took[name])} ms, over ours {ratio(took[name], took['ours'])}; wanted: {wanted}")


def rewards_on_a_gpu() -> None:
    """Print the time on a GPU, with every transfer from it to the host an error."""
    if not torch.cuda.is_available():
        print("  distances on a GPU: skipped: there is none")
        return
    here, there = pairs(), pairs("cuda")
    torch.testing.assert_close(prefix_edit_distances(*there).cpu(), prefix_edit_distances(*here))
    torch.cuda.set_sync_debug_mode("error")
    try:
        prefix_edit_distances(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    took = milliseconds({"gpu": lambda: prefix_edit_distances(*there)}, REPEATS, calls=5, device="cuda")["gpu"]
    print(f"  distances of {PAIRS * STEPS} prefixes on a GPU: {spread(took)} ms of wall time, no wait for the host")


def graph_rollout(model: FastReader, batch: TokenBatch) -> Tensor:
    """Log-probabilities ``(B, T)`` of draws with a graph through the sampling loop, as long as ``batch``."""
    generator = torch.Generator().manual_seed(0)
    logits, state = model.start(batch.context, batch.group)
    found = []
    for t in range(batch.tokens.shape[1]):
        token, log_prob = draw_tokens(logits, 1.0, generator)
        found.append(log_prob)
        if t + 1 < batch.tokens.shape[1]:
            logits, state = model.advance(state, token)
    return torch.stack(found, 1)


def scoring() -> None:
    """Print the time of a graph through the sampling loop over that of sampling without one and scoring in parallel."""
    speech, model = speech_of(CLIPS), reader()
    clips = Clips(speech.observation, speech.length)
    with torch.no_grad():
        batch = model.sample(clips, 1, STEPS, generator=torch.Generator().manual_seed(0))
    for name, backward in (("forwards", False), ("forwards and backwards", True)):

        def work(log_prob: Callable[[], Tensor], backward: bool = backward) -> Callable[[], None]:
            def run() -> None:
                found = log_prob()
                if backward:
                    model.zero_grad()
                    found.mean().backward()

            return run

        works = {
            "a graph through the sampling loop": work(lambda: graph_rollout(model, batch)),
            "scoring in parallel": work(lambda: model.score(batch).log_prob),
        }
        took = milliseconds(works, REPEATS)
        loop, parallel = took.values()
        print(f"  {CLIPS} clips, {batch.tokens.shape[1]} characters, {name}:")
        for what, times in took.items():
            print(f"    {what:<34} {spread(times)} ms")
        print(f"    the loop's time over that of the parallel pass: {ratio(loop, parallel)}; wanted: at least 5")


@dataclass
class FixedClips:
    """The same clips in each update, so that only the update is timed."""

    speech: Speech
    max_length: int = STEPS

    def prompts(self, n: int, step: int, generator: torch.Generator) -> Prompts:
        """The first n."""
        speech = self.speech[:n]
        tokens = speech.tokens
        right = TokenBatch(tokens, tokens != alphabet.PAD, torch.arange(len(tokens)))
        return Prompts(Clips(speech.observation, speech.length), right)

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        """``(B, T)`` edits that each symbol saves."""
        assert prompts.reference is not None
        return reward("dense", batch, prompts.reference)


def updates() -> None:
    """Print the time of updates with windows over that of updates by cross-entropy alone."""
    task = FixedClips(speech_of(CLIPS))

    def one_more(group: int) -> Callable[[], object]:
        source: Source = Rollouts(task, CLIPS, group) if group else Supervised(task, CLIPS)
        windows = Windowed(baseline="none" if group == 1 else "group") if group else None
        objective = Objective(policy=windows, supervised=CrossEntropy())
        learner = SequencePolicyOptimization(reader(), source, objective, learning_rate=1e-4)
        return lambda: learner.train(learner.step + 1)

    names = {0: "cross-entropy", 1: "and windows, 1 sample a clip", 4: "and windows, 4 samples a clip"}
    took = milliseconds({name: one_more(group) for group, name in names.items()}, REPEATS, calls=2)
    print(f"  an update on {CLIPS} clips of 75 frames and some 25 characters:")
    for name, times in took.items():
        print(f"    {name:<30} {spread(times)} ms")
    for group, wanted in ((1, "at most 2.2"), (4, "about 3.3")):
        over = ratio(took[names[group]], took[names[0]])
        print(f"    windows with {group} over cross-entropy: {over}; wanted: {wanted}")


def simulator() -> None:
    """Print simulated clips of features a CPU second."""
    mouth, speakers = TalkingMouth(), Speakers.draw(20, 0)
    generator = torch.Generator().manual_seed(0)

    def sample() -> int:
        return len(mouth.sample(1000, generator, speakers))

    print(f"  features of 75 frames: {spread(rates(sample))} clips/CPU s; wanted: at least 2000")


def decoding() -> None:
    """Print the time of a greedy decoding of 1000 clips; a fresh model ends no sentence, so that none is cut short."""
    speech, model = speech_of(1000), reader()
    clips = Clips(speech.observation, speech.length)
    took = milliseconds({"greedy": lambda: greedy(model, clips)}, REPEATS)["greedy"]
    print(f"  greedy decoding of 1000 clips, {STEPS} characters: {spread(took)} ms; wanted: less than 1000")


def greedy(model: LipReader, clips: Clips) -> list[str]:
    """The most probable characters, one after the other, as texts."""
    return alphabet.decode(model.sample(clips, 1, STEPS, temperature=0.0).tokens)


def main() -> None:
    """Run all of them."""
    rewards()
    rewards_on_a_gpu()
    scoring()
    updates()
    simulator()
    decoding()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
