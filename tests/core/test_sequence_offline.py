import math
from typing import Annotated

import pytest
import torch
from pydantic import Field, TypeAdapter, ValidationError

from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.offline import OREO, ReferencedBatch, with_reference
from core.sequence.preferences import CPL, DPO
from core.sequence.tasks.random_tree import RandomTree, TabularPolicy

BOTH = frozenset({"value", "logits"})


def optimum(tree, beta):
    log_policy, value = tree.soft_optimal(beta)
    policy = TabularPolicy(tree, log_policy)
    policy.value.data = value
    return policy


def ragged(seed=0, dtype=torch.float64):
    """Six rows of three to five tokens, of which the first of row 1 was forced, and made-up scores of them."""
    g = torch.Generator().manual_seed(seed)
    length = torch.tensor([5, 4, 3, 5, 4, 3])
    present = torch.arange(5) < length[:, None]
    mask = present.clone()
    mask[1, 0] = False
    log_prob, log_prob_ref, value = torch.randn(3, 6, 5, generator=g, dtype=dtype)
    batch = TokenBatch(
        torch.randint(0, 4, (6, 5), generator=g),
        mask,
        torch.arange(6),
        present=present,
        reward=torch.rand(6, generator=g, dtype=dtype),
        log_prob_ref=log_prob_ref,
        segment=torch.tensor([0, 0, 1, 1, 2]).expand(6, 5),
    )
    return TokenScores(log_prob.requires_grad_(), value=value.requires_grad_()), batch


def test_alternating_steps_on_all_paths_find_the_closed_form():
    tree, beta = RandomTree(4, 2, 0.25), 0.1
    policy, leaves, objective = TabularPolicy(tree), tree.leaves(), OREO(beta, kl=0.0)
    optimizers = [torch.optim.Adam(policy.parameters(), lr=0.0) for _ in objective.phases]
    steps = 2000
    for step in range(steps):
        for optimizer, phase in zip(optimizers, objective.phases, strict=True):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps)) / 2 + 1e-6
            optimizer.zero_grad()
            phase(policy.score(leaves, need=phase.need), leaves).value.backward()
            optimizer.step()
    log_policy, value = tree.soft_optimal(beta)
    assert (policy.logits.log_softmax(-1) - log_policy).abs().max() < 1e-6
    assert (policy.value - value).abs().max() < 1e-6


@pytest.mark.parametrize("level", ["token", "step", "response"])
@pytest.mark.parametrize("one_step", [False, True])
def test_nothing_is_left_to_learn_at_the_closed_form(level, one_step):
    tree, beta = RandomTree(4, 3, seed=5), 0.2
    policy = optimum(tree, beta)
    leaves = tree.leaves().with_(segment=torch.tensor([0, 1, 1, 2]).expand(81, 4))
    objective = OREO(beta, kl=0.0, level=level, one_step=one_step)
    scores = policy.score(leaves, need=BOTH)
    assert objective(scores, leaves).value < 1e-28
    policy.value.data[0] += 0.1
    assert objective.critic(policy.score(leaves, need=BOTH), leaves).value > 1e-4


def test_equal_rewards_are_consistent_with_the_reference():
    tree = RandomTree(rewarded=1.0)
    policy = TabularPolicy(tree)
    policy.value.data[:] = 1.0
    assert OREO(kl=0.0)(policy.score(tree.leaves(), need=BOTH), tree.leaves()).value < 1e-28


def test_the_residual_and_its_two_derivatives_are_those_of_the_definition():
    scores, batch = ragged()
    beta, objective = 0.3, OREO(0.3, kl=0.0)
    d, rows = beta * (scores.log_prob - batch.log_prob_ref).detach(), len(batch)
    expected, of_value, of_lp = 0.0, torch.zeros(6, 5).double(), torch.zeros(6, 5).double()
    for b in range(rows):
        where = batch.mask[b].nonzero().flatten().tolist()
        for t in where:
            residual = scores.value[b, t].item() - batch.reward[b] + sum(d[b, u] for u in where if u >= t)
            expected = expected + residual**2 / len(where) / rows
            of_value[b, t] = 2 * residual / len(where) / rows
            of_lp[b, t] = beta * of_value[b, t]
    critic, actor = objective.critic(scores, batch).value, objective.actor(scores, batch).value
    assert torch.allclose(critic, expected)
    assert torch.allclose(actor, expected)
    assert torch.allclose(torch.autograd.grad(critic, scores.value, retain_graph=True)[0], of_value)
    assert torch.allclose(torch.autograd.grad(actor, scores.log_prob, retain_graph=True)[0], of_lp)
    for value, other in ((critic, scores.log_prob), (actor, scores.value)):
        assert torch.autograd.grad(value, other, allow_unused=True, retain_graph=True) == (None,)


def test_steps_of_one_token_and_one_step_are_the_other_levels():
    scores, batch = ragged()
    cases = {"token": torch.arange(5).expand(6, 5), "response": torch.zeros(6, 5, dtype=torch.int64)}
    for level, segment in cases.items():
        for one_step in (False, True):
            first = OREO(kl=0.0, level=level, one_step=one_step)(scores, batch)
            second = OREO(kl=0.0, level="step", one_step=one_step)(scores, batch.with_(segment=segment))
            assert torch.equal(first.value, second.value)
            assert torch.equal(
                *(torch.autograd.grad(x.value, scores.log_prob, retain_graph=True)[0] for x in (first, second))
            )


def test_all_tokens_of_a_step_carry_its_gradient():
    scores, batch = ragged()
    actor = OREO(0.3, kl=0.0, level="step").actor(scores, batch).value
    gradient = torch.autograd.grad(actor, scores.log_prob)[0]
    assert torch.equal(gradient[0, 0], gradient[0, 1])
    assert torch.equal(gradient[0, 2], gradient[0, 3])
    assert gradient[0, 0] != gradient[0, 2]
    assert (gradient[~batch.mask] == 0).all()


def test_a_dense_reward_counts_from_its_token_on():
    scores, batch = ragged()
    last = batch.mask & (batch.mask.flip(1).cumsum(1).flip(1) == 1)
    at_end = batch.with_(reward=batch.reward[:, None] * last)
    assert torch.allclose(OREO(kl=0.0)(scores, batch).value, OREO(kl=0.0)(scores, at_end).value)
    early = batch.with_(reward=batch.mask.double())
    residual = scores.value + OREO(kl=0.0).beta * (scores.log_prob - batch.log_prob_ref)
    row = residual[2, 2] - 1
    alone = OREO(kl=0.0).critic(TokenScores(scores.log_prob, value=scores.value), early)
    assert alone.value > 0
    one = early.with_(mask=batch.mask & (torch.arange(5) == 2) & (torch.arange(6) == 2)[:, None])
    assert torch.allclose(OREO(kl=0.0).critic(scores, one).value, row**2 / 6)


def test_the_divergence_is_that_of_the_whole_vocabulary():
    tree, other = RandomTree(3, 3), RandomTree(3, 3, seed=9)
    policy = TabularPolicy(other)
    batch = with_reference(tree.leaves(), TabularPolicy(tree))
    assert torch.allclose(batch.log_prob_ref, tree.leaves().log_prob_ref)
    p, q = (torch.distributions.Categorical(logits=x.reference) for x in (other, tree))
    node = torch.tensor([[0, 1 + a, 4 + 3 * a + b] for a in range(3) for b in range(3) for _ in range(3)])
    expected = torch.distributions.kl_divergence(p, q)[node].mean()
    assert torch.allclose(OREO().actor(policy.score(batch, need=BOTH), batch).metrics["kl_ref"], expected)
    longer = batch.pad_to(5)
    assert longer.logits_ref.shape == (27, 5, 3)
    assert torch.allclose(OREO()(policy.score(longer, need=BOTH), longer).metrics["kl_ref"], expected)
    assert torch.equal(ReferencedBatch.joined((batch, longer))[:27].logits_ref[:, :3], batch.logits_ref)


def test_tokens_that_both_rule_out_add_nothing_to_the_divergence():
    logits = torch.tensor([[[0.3, -math.inf, 0.2]]], requires_grad=True)
    fields = {"reward": torch.ones(1), "log_prob_ref": torch.zeros(1, 1), "logits_ref": torch.zeros(1, 1, 3)}
    fields["logits_ref"][0, 0, 1] = -math.inf
    batch = ReferencedBatch(torch.zeros(1, 1).long(), torch.ones(1, 1).bool(), torch.zeros(1).long(), **fields)
    scores = TokenScores(logits.log_softmax(-1)[..., 0], logits=logits, value=torch.zeros(1, 1))
    value = OREO(kl=1.0).actor(scores, batch).value
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_rows_without_tokens_that_count_are_no_fault():
    scores, batch = ragged()
    none = batch.with_(mask=torch.zeros_like(batch.mask))
    for level in ("token", "step", "response"):
        value = OREO(kl=0.0, level=level)(scores, none).value
        assert value == 0
        value.backward()
        assert (scores.log_prob.grad == 0).all()


def test_what_is_lacking_or_impossible_is_refused():
    scores, batch = ragged()
    with pytest.raises(InputError, match="with_reference"):
        OREO().actor(TokenScores(scores.log_prob, value=scores.value, logits=torch.zeros(6, 5, 4)), batch)
    with pytest.raises(InputError, match="log_prob_ref"):
        OREO(kl=0.0)(scores, batch.with_(log_prob_ref=None))
    with pytest.raises(InputError, match="segment"):
        OREO(kl=0.0, level="step")(scores, batch.with_(segment=None))
    for wrong in ({"beta": 0.0}, {"kl": -1.0}, {"beta": math.nan}, {"level": "word"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            OREO(**wrong)


def test_configurations_name_their_objective():
    adapter = TypeAdapter(Annotated[OREO | DPO | CPL, Field(discriminator="name")])
    assert adapter.validate_python({"name": "oreo", "beta": 0.1, "level": "step"}) == OREO(0.1, level="step")
    assert adapter.validate_python({"name": "dpo", "ipo": True}) == DPO(ipo=True)
    assert adapter.validate_python({"name": "cpl"}) == CPL()
    for wrong in ({"name": "oreo", "level": "word"}, {"name": "cpl", "bias": 2.0}, {"name": "dpo", "temperature": 1.0}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
