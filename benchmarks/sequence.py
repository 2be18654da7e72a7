"""Advantages, scores with gradients, search with caches and updates, each against the slow way or TRL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import spread
from benchmarks.trl_grpo import milliseconds_of_trl
from benchmarks.turns import milliseconds, ratio
from core.errors import MissingExtra, require
from core.sequence.advantages import GroupRelative, group_relative
from core.sequence.batch import TokenBatch
from core.sequence.causal_lm import CausalLMPolicy
from core.sequence.losses import GRPO
from core.sequence.policy import StepwisePolicy
from core.sequence.rollouts import Prompts, Rollouts
from core.sequence.search import beam
from core.sequence.tasks.toy_policy import ToyPolicy
from core.sequence.train import Objective, SequencePolicyOptimization
from core.torchvision_guard import shield

ROWS, CALLS, REPEATS = 4096, 50, 9
VOCABULARY, EOS, PROMPTS, GROUP, PROMPT_LENGTH = 32, 31, 64, 8, 3
LETTER = 5
"""The token that the task of the update rewards."""


def by_rows(r: Tensor, group: list[int], eps: float = 1e-6) -> Tensor:
    """The loop."""
    scores, found = defaultdict(list), r.clone()
    for i in range(len(r)):
        scores[group[i]].append(r[i])
    mean, std = {}, {}
    for g, members in scores.items():
        stacked = torch.stack(members)
        alone = len(members) == 1
        mean[g], std[g] = (torch.tensor(0.0), torch.tensor(1.0)) if alone else (stacked.mean(), stacked.std())
    for i in range(len(r)):
        found[i] = (found[i] - mean[group[i]]) / (std[group[i]] + eps)
    return found


def advantages() -> None:
    """Print how long advantages take."""
    for size in (4, 8, 64):
        r = torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
        group = torch.arange(ROWS) // size
        members = group.tolist()
        torch.testing.assert_close(group_relative(r, group), by_rows(r, members), rtol=1e-4, atol=1e-5)
        works: dict[str, Callable[[], object]] = {
            "ours": lambda r=r, group=group: [group_relative(r, group) for _ in range(CALLS)],
            "loop": lambda r=r, members=members: by_rows(r, members),
        }
        took = milliseconds(works, REPEATS)
        took["ours"] = [x / CALLS for x in took["ours"]]
        print(
            f"  {ROWS} rows, {size} a prompt: {spread(took['ours'])} ms; a loop over rows: {spread(took['loop'])} ms, "
            f"over ours {ratio(took['loop'], took['ours'])}; wanted: at least 50"
        )


def llama(hidden: int = 32) -> Any:
    """A random Llama of 22 thousand weights."""
    shield()
    transformers = require("transformers", "lm")
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCABULARY, **sizes))


def asked(prompts: int) -> dict[str, Tensor]:
    """Prompts of a few tokens."""
    ids = torch.randint(0, VOCABULARY - 2, (prompts, PROMPT_LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def through_the_loop(policy: StepwisePolicy, batch: TokenBatch) -> Tensor:
    """``(B, T)`` log-probabilities with a graph through every step, as sampling with a graph makes it."""
    logits, state = policy.start(batch.context, batch.group)
    found = []
    for t, token in enumerate(batch.tokens.unbind(1)):
        found.append(logits.log_softmax(-1).gather(1, token.unsqueeze(1)))
        if t + 1 < batch.tokens.shape[1]:
            logits, state = policy.advance(state, token)
    return torch.where(batch.valid, torch.cat(found, 1), 0.0)


def rescoring(device: str) -> None:
    """Print how long log-probabilities and their gradient take in one pass and through the loop."""
    context = {name: x.to(device) for name, x in asked(PROMPTS).items()}
    toy = ToyPolicy(PROMPT_LENGTH, VOCABULARY, VOCABULARY, EOS).to(device)
    for name, policy, what in (
        ("GRU", toy, context["input_ids"]),
        ("Llama", CausalLMPolicy(llama().to(device), EOS), context),
    ):
        # cuDNN takes no gradient through a recurrent layer in evaluation mode.
        toy.train()
        for length in (8, 32):
            batch = policy.sample(what, GROUP, length, generator=torch.Generator(device).manual_seed(0))
            alike = policy.score(batch).log_prob
            torch.testing.assert_close(through_the_loop(policy, batch), alike, rtol=1e-3, atol=1e-4)
            works: dict[str, Callable[[], object]] = {
                "one pass": lambda policy=policy, batch=batch: policy.score(batch).log_prob.sum().backward(),
                "loop": lambda policy=policy, batch=batch: through_the_loop(policy, batch).sum().backward(),
            }
            took = milliseconds(works, REPEATS, device=device)
            print(
                f"  {name} on {device}, {len(batch)} sequences of up to {length} tokens, scores and gradient: "
                f"{spread(took['one pass'])} ms; by a loop {spread(took['loop'])} ms, "
                f"over ours {ratio(took['loop'], took['one pass'])}; wanted: at least 5"
            )


@dataclass(frozen=True)
class Reading:
    """Prompts that answers stand for, and the answers so far."""

    ids: Tensor


class ReadingAgain(CausalLMPolicy):
    """The same model without a cache: each step reads all that came before."""

    def start(self, context: dict[str, Tensor], group: Tensor) -> tuple[Tensor, Any]:
        """See ``StepwisePolicy.start``."""
        return self.advance(Reading(context["input_ids"][group, :-1]), context["input_ids"][group, -1])

    def advance(self, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        """See ``StepwisePolicy.advance``."""
        state = Reading(torch.cat([state.ids, tokens.unsqueeze(1)], 1))
        return self.model(input_ids=state.ids, use_cache=False, logits_to_keep=1).logits[:, -1], state

    def select(self, state: Any, rows: Tensor) -> Any:
        """See ``StepwisePolicy.select``."""
        return Reading(state.ids[rows])


def endless(tokens: Tensor, group: Tensor) -> Tensor:
    """All but the end symbol."""
    return (torch.arange(VOCABULARY) != EOS).expand(len(tokens), -1)


def cached_search() -> None:
    """Print how long a beam takes with the cache kept and with prefixes read again."""
    context = asked(16)
    for hidden in (32, 256):
        model = llama(hidden)
        kept, again = CausalLMPolicy(model, EOS), ReadingAgain(model, EOS)
        search = partial(beam, context=context, width=4, max_length=32, constraint=endless)
        torch.testing.assert_close(search(kept).reward, search(again).reward, rtol=1e-4, atol=1e-4)
        works: dict[str, Callable[[], object]] = {
            "kept": partial(search, kept),
            "again": partial(search, again),
        }
        took = milliseconds(works, REPEATS)
        print(
            f"  Llama of width {hidden}, beam of 4 for 16 prompts, 32 tokens: {spread(took['kept'])} ms; prefixes read "
            f"again {spread(took['again'])} ms, over ours {ratio(took['again'], took['kept'])}; wanted: at least 3"
        )


@dataclass(frozen=True)
class Letters:
    """Answers are rewarded by their share of one token."""

    max_length: int = 8

    def prompts(self, n: int, step: int, generator: torch.Generator) -> Prompts:
        """See ``Task.prompts``."""
        return Prompts(asked(n))

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        """See ``Task.reward``."""
        return (batch.mask & (batch.tokens == LETTER)).sum(1) / batch.length


def update() -> None:
    """Print how long an update of GRPO takes, from sampling to the last of its four steps, beside TRL's trainer."""
    objective = Objective(policy=GRPO(), estimator=GroupRelative(), minibatches=4)
    source = Rollouts(Letters(), PROMPTS, GROUP)
    ours = SequencePolicyOptimization(CausalLMPolicy(llama(), EOS), source, objective, learning_rate=1e-4)
    took = milliseconds({"ours": lambda: ours.train(ours.step + 1)}, REPEATS)["ours"]
    what = f"Llama, {PROMPTS} prompts x {GROUP} samples of up to 8 tokens, 4 minibatches"
    print(f"  an update of GRPO ({what}): {spread(took)} ms")
    ids = asked(PROMPTS)["input_ids"]
    try:
        theirs = milliseconds_of_trl(llama(), ids, LETTER, group=GROUP, length=8, minibatches=4, updates=REPEATS)
    except MissingExtra as missing:
        print(f"  TRL: skipped: {missing}")
        return
    print(f"  TRL: {spread(theirs)} ms; ours over it {ratio(took, theirs)}; wanted: at most 0.5")


def main() -> None:
    """Run all of them."""
    advantages()
    try:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            rescoring(device)
        cached_search()
        update()
    except MissingExtra as missing:
        print(f"  language models: skipped: {missing}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
