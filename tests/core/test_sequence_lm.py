"""Language models as policies: tiny ones with random weights, made from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.causal_lm import CausalLMPolicy, load_causal_lm
from core.sequence.search import beam, greedy, tree_search, value_beam
from core.torchvision_guard import shield

shield()
transformers = pytest.importorskip("transformers", reason="transformers (extra lm) is not installed")

V, EOS = 12, 3
FAMILIES = ("llama", "gpt2")


def model_of(family: str, seed: int = 0, places: int = 40) -> Any:
    """Weights large enough that its probabilities are far from even."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "llama":
            config = transformers.LlamaConfig(
                vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=places, initializer_range=0.3,
            )  # fmt: skip
            return transformers.LlamaForCausalLM(config)
        config = transformers.GPT2Config(
            vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=places, initializer_range=0.3,
            bos_token_id=0, eos_token_id=EOS,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)


def policy_of(family: str, seed: int = 0, **kwargs: Any) -> CausalLMPolicy:
    return CausalLMPolicy(model_of(family, seed), EOS, **kwargs).requires_grad_(False)


def prompts_of(n: int = 6, longest: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """Prompts of 1 to ``longest`` tokens; the padding holds symbols that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.arange(n) % longest + 1
    mask = torch.arange(longest) >= longest - length.unsqueeze(1)
    return {"input_ids": torch.randint(0, V, (n, longest), generator=generator), "attention_mask": mask.long()}


def sampled(policy: CausalLMPolicy, temperature: float = 1.0, n: int = 4, length: int = 8) -> TokenBatch:
    return policy.sample(prompts_of(), n, length, temperature, generator=torch.Generator().manual_seed(1))


def plain_log_probs(policy: CausalLMPolicy, batch: TokenBatch) -> Tensor:
    """Of the model itself, one unpadded sequence after the other."""
    found = torch.zeros(batch.tokens.shape)
    for i, (g, n) in enumerate(zip(batch.group.tolist(), batch.length.tolist(), strict=True)):
        mask = batch.context["attention_mask"][g].bool()
        prompt, answer = batch.context["input_ids"][g][mask], batch.tokens[i, :n]
        logits = policy.model(torch.cat([prompt, answer]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        found[i, :n] = logits.log_softmax(-1).gather(1, answer.unsqueeze(1)).squeeze(1)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_scores_of_samples_are_those_they_were_sampled_with(family: str, temperature: float) -> None:
    policy = policy_of(family)
    batch = sampled(policy, temperature)
    assert len(set(batch.length.tolist())) > 3
    scores = policy.score(batch, temperature)
    assert torch.allclose(scores.log_prob, batch.need("log_prob_old"), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_score(family: str) -> None:
    policy = policy_of(family)
    batch = sampled(policy)
    assert torch.allclose(policy.score(batch.pad_to(13)).log_prob[:, :8], plain_log_probs(policy, batch), atol=1e-5)
    alone = batch[batch.group == 0]
    assert torch.allclose(policy.score(alone).log_prob, policy.score(batch).log_prob[batch.group == 0], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_what_transformers_generates(family: str) -> None:
    policy = policy_of(family, seed=1)
    context = prompts_of()
    ours = greedy(policy, context, 8)
    theirs = policy.model.generate(**context, do_sample=False, max_new_tokens=8, eos_token_id=EOS, pad_token_id=0)[
        :, 5:
    ]
    assert torch.equal(ours.tokens, theirs)
    assert torch.equal(beam(policy, context, 1, 8).tokens, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_searches_keep_caches_that_agree_with_a_fresh_pass(family: str) -> None:
    policy, context = policy_of(family), prompts_of()
    generator = torch.Generator().manual_seed(0)

    def many_low(_: Any, batch: TokenBatch) -> Tensor:
        return (batch.valid & (batch.tokens < 4)).sum(1) / batch.length

    found = (
        beam(policy, context, 5, 8),
        value_beam(policy, context, 3, 3, 8, many_low, torch.tensor([4, 5, 6, 7]), generator=generator),
        tree_search(policy, context, 12, 8, lambda batch: many_low(None, batch), expand=4, generator=generator),
    )
    for batch in found:
        assert len(set(batch.length.tolist())) > 2
        assert torch.allclose(policy.score(batch).log_prob, batch.need("log_prob_old"), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_different_lengths_go_on_together_and_old_ones_stay(family: str) -> None:
    policy, context = policy_of(family), prompts_of()
    group = torch.arange(6)
    first, start = policy.start(context, group)
    one = torch.full((6,), 5)
    _, longer = policy.advance(start, one)
    want, longest = policy.advance(longer, one + 1)
    both = policy.join((start, longest))
    rows = torch.tensor([7, 0, 11, 5])
    got, _ = policy.advance(policy.select(both, rows), torch.tensor([9, 5, 9, 5]))
    after_start, _ = policy.advance(start, one)
    after_longest, _ = policy.advance(longest, one + 4)
    assert torch.allclose(
        got, torch.stack([after_longest[1], after_start[0], after_longest[5], after_start[5]]), atol=1e-5
    )
    assert torch.equal(policy.advance(longer, one + 1)[0], want)
    assert torch.equal(policy.start(context, group)[0], first)
    short = policy.select(both, torch.arange(6))
    assert policy.join((short, short)).mask.shape[1] == start.mask.shape[1]


def test_a_prefix_is_forced_and_not_counted() -> None:
    policy = policy_of("llama")
    tokens = torch.tensor([[5, 6], [7, 0]]).repeat(3, 1)
    prefix = TokenBatch(tokens, tokens > 0, torch.arange(6))
    batch = policy.sample(prompts_of(), 1, 6, prefix=prefix, generator=torch.Generator().manual_seed(0))
    assert torch.equal(batch.tokens[:, :2][tokens > 0], tokens[tokens > 0])
    assert not batch.mask[:, :2][tokens > 0].any()
    scores = policy.score(batch).log_prob
    assert torch.allclose(scores[batch.mask], batch.need("log_prob_old")[batch.mask], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_whole_sequences_also_in_parts(family: str) -> None:
    batch = sampled(policy_of(family))
    weight = torch.randn(batch.tokens.shape, generator=torch.Generator().manual_seed(2)) * batch.mask
    gradients = []
    for numbers in (2**27, 3 * V * 8, None):
        policy = CausalLMPolicy(model_of(family), EOS, numbers_at_once=numbers or 2**27)
        if numbers is None:
            lp = plain_log_probs(policy, batch)
        else:
            scores = policy.score(batch, need=frozenset({"entropy"}))
            lp = scores.log_prob
            assert scores.entropy is not None
        (lp * weight).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-4)
    assert torch.allclose(gradients[0], gradients[2], atol=1e-4)


def test_all_fields_are_filled_and_agree() -> None:
    head = nn.Linear(32, 1)
    policy = policy_of("llama", value_head=head)
    batch = sampled(policy, 0.8)
    scores = policy.score(batch, 0.8, frozenset({"entropy", "logits", "hidden", "value"}))
    logits, hidden = scores.need("logits"), scores.need("hidden")
    assert torch.allclose(policy.model.lm_head(hidden) / 0.8, logits, atol=1e-5)
    assert torch.allclose(torch.distributions.Categorical(logits=logits).entropy(), scores.need("entropy"), atol=1e-5)
    assert torch.allclose(head(hidden).squeeze(-1), scores.need("value"), atol=1e-6)
    bare = policy_of("llama").score(batch, 0.8)
    assert bare.entropy is None
    assert bare.hidden is None
    assert bare.value is None
    assert torch.allclose(bare.log_prob, scores.log_prob, atol=1e-6)


def test_the_padding_may_be_the_end_symbol() -> None:
    policy, other = policy_of("llama", pad=EOS), policy_of("llama", pad=0)
    one, two = sampled(policy), sampled(other)
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(policy.score(one).log_prob, other.score(two).log_prob)


def test_half_precision_models_are_judged_in_float32() -> None:
    policy = CausalLMPolicy(model_of("llama").bfloat16(), EOS)
    with torch.no_grad():
        batch = sampled(policy)
        scores = policy.score(batch, need=frozenset({"entropy", "logits"}))
    assert scores.log_prob.dtype == scores.need("entropy").dtype == scores.need("logits").dtype == torch.float32
    assert batch.need("log_prob_old").dtype == torch.float32


def test_dropout_is_off() -> None:
    assert not any(m.training for m in CausalLMPolicy(model_of("gpt2").train(), EOS).modules())


def test_prompts_that_cannot_be_read_are_refused() -> None:
    policy, context = policy_of("gpt2"), prompts_of()
    right = {**context, "attention_mask": context["attention_mask"].flip(1)}
    with pytest.raises(InputError, match=r"attention_mask: row 0 is \[1, 0, 0, 0, 0\]"):
        policy.sample(right, 1, 4)
    with pytest.raises(InputError, match="45 tokens; the model's context allows 40"):
        policy.sample(context, 1, 40)
    with pytest.raises(InputError, match="the model's context allows 40"):
        policy.score(sampled(policy).pad_to(37))
    with pytest.raises(InputError, match="41 tokens"):
        beam(policy, context, 2, 60, constraint=lambda tokens, _: (torch.arange(V) != EOS).expand(len(tokens), V))


def test_models_come_from_a_folder_and_from_nowhere_else(tmp_path: Path) -> None:
    model = model_of("llama")
    model.save_pretrained(tmp_path / "model")
    loaded = load_causal_lm(str(tmp_path / "model"))
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    with pytest.raises(InputError, match="absent: no causal language model"):
        load_causal_lm(str(tmp_path / "absent"))


def test_the_value_after_an_answer_that_fills_the_context_can_be_asked_for() -> None:
    policy = policy_of("gpt2", value_head=nn.Linear(32, 1))
    never = torch.zeros(V).index_fill(0, torch.tensor([EOS]), -1e9)
    policy.model.lm_head.bias = nn.Parameter(never, requires_grad=False)
    found = value_beam(policy, prompts_of(), 2, 2, 35, generator=torch.Generator().manual_seed(0))
    assert (found.length == 35).all()
    assert torch.isfinite(found.need("reward")).all()
