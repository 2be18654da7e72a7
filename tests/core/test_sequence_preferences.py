import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.objective import Objective
from core.sequence.pairs import draw_pairs, ordered_pairs
from core.sequence.preferences import (
    CPL,
    DPO,
    GradedBatch,
    PreferenceDegree,
    did_entropy,
    did_weights,
    margin_loss,
)
from core.sequence.rollouts import Recorded, Rollouts
from core.sequence.tasks.brackets import Brackets
from core.sequence.tasks.random_tree import RandomTree, TabularPolicy
from core.sequence.train import SequencePolicyOptimization
from core.stats.ranks import rank_correlation


def comparisons(rows=8, groups=4, seed=0, dtype=torch.float64):
    """Rows of two to five tokens in mixed order of the groups, with distinct rewards and made-up log-probabilities."""
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(2, 6, (rows, 1), generator=g)
    log_prob, log_prob_ref = -torch.rand(2, rows, 5, generator=g, dtype=dtype)
    batch = TokenBatch(
        torch.randint(0, 4, (rows, 5), generator=g),
        torch.arange(5) < length,
        torch.arange(rows)[torch.randperm(rows, generator=g)] % groups,
        reward=torch.rand(rows, generator=g, dtype=dtype),
        log_prob_ref=log_prob_ref,
        segment=torch.tensor([0, 0, 1, 1, 2]).expand(rows, 5),
    )
    return TokenScores(log_prob.requires_grad_()), batch


def gradient(result, scores):
    return torch.autograd.grad(result.value, scores.log_prob, retain_graph=True)[0]


def test_the_margin_loss_is_the_logistic_one_with_its_variants():
    won, lost = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(margin_loss(won, lost), -torch.sigmoid(won - lost).log().mean())
    assert margin_loss(won, won) == pytest.approx(math.log(2))
    assert torch.allclose(
        margin_loss(won, lost, smoothing=0.1), 0.9 * margin_loss(won, lost) + 0.1 * margin_loss(lost, won)
    )
    assert torch.allclose(margin_loss(won, lost, squared=True), (won - lost - 0.5).square().mean())
    assert torch.allclose(margin_loss(won, lost, weight=(won > 0).double()), margin_loss(won[won > 0], lost[won > 0]))
    assert torch.allclose(margin_loss(won + 3, lost + 3), margin_loss(won, lost))
    # Below 1, improbable pairs (both scores low) cost more.
    assert (
        margin_loss(won - 3, lost - 3, bias=0.5)
        > margin_loss(won, lost, bias=0.5)
        > margin_loss(won + 3, lost + 3, bias=0.5)
    )


def test_all_pairs_of_a_group_are_ordered_by_reward_and_ties_count_half():
    reward, group = torch.tensor([0.2, 1.0, 0.2, 0.5, 0.5]), torch.tensor([0, 0, 0, 1, 1])
    winner, loser, weight = ordered_pairs(reward, group)
    assert list(zip(winner.tolist(), loser.tolist(), strict=True)) == [(1, 0), (1, 2)]
    assert weight.tolist() == [1, 1]
    winner, loser, weight = ordered_pairs(reward, group, ties=True)
    found = dict(zip(zip(winner.tolist(), loser.tolist(), strict=True), weight.tolist(), strict=True))
    assert found == {(1, 0): 1, (1, 2): 1, (0, 2): 0.5, (2, 0): 0.5, (3, 4): 0.5, (4, 3): 0.5}
    assert ordered_pairs(reward, None, ties=True)[2].sum() == 10


def test_dpo_is_the_mean_over_pairs_of_the_sums_of_log_ratios():
    scores, batch = comparisons()
    h = [(scores.log_prob - batch.log_prob_ref)[i, batch.mask[i]].sum() for i in range(8)]
    terms = []
    for g in range(4):
        i, j = sorted((batch.group == g).nonzero().flatten().tolist(), key=lambda r: -batch.reward[r])
        terms.append(h[i] - h[j])
    margin = torch.stack(terms)
    found = DPO(0.3)(scores, batch)
    assert torch.allclose(found.value, functional.softplus(-0.3 * margin).mean())
    assert found.metrics["pairs"] == 4
    assert found.metrics["accuracy"] == (margin > 0).double().mean()
    assert torch.allclose(found.metrics["margin"], 0.3 * margin.mean())
    assert torch.allclose(DPO(0.3, ipo=True)(scores, batch).value, (margin - 1 / 0.6).square().mean())
    smooth = 0.9 * functional.softplus(-0.3 * margin) + 0.1 * functional.softplus(0.3 * margin)
    assert torch.allclose(DPO(0.3, label_smoothing=0.1)(scores, batch).value, smooth.mean())


def test_at_the_reference_the_loss_is_log_2_and_winners_rise():
    scores, batch = comparisons()
    batch = batch.with_(log_prob_ref=scores.log_prob.detach())
    found = DPO(0.2)(scores, batch)
    assert found.value.item() == pytest.approx(math.log(2), abs=1e-12)
    winner, loser, _ = ordered_pairs(batch.reward, batch.group)
    expected = torch.zeros(8, 5).double()
    expected[winner] = -0.2 / 2 / 4
    expected[loser] = 0.2 / 2 / 4
    assert torch.allclose(gradient(found, scores), expected * batch.mask)


def test_length_normalisation_takes_the_mean_of_a_sequence():
    scores, batch = comparisons()
    length = batch.mask.sum(1, keepdim=True)
    shrunk = TokenScores(scores.log_prob / length)
    normal = DPO(length_normalised=True)(scores, batch).value
    assert torch.allclose(normal, DPO()(shrunk, batch.with_(log_prob_ref=batch.log_prob_ref / length)).value)


def test_the_entropy_of_differential_information_is_of_whole_sequences_whatever_h_is():
    scores, batch = comparisons()
    total = ((scores.log_prob - batch.log_prob_ref) * batch.mask).sum(1)
    wanted = did_entropy(total, torch.zeros_like(total), batch.group).mean()
    for normalised in (False, True):
        found = DPO(length_normalised=normalised)(scores, batch).metrics["did_entropy"]
        torch.testing.assert_close(found, wanted.detach())


def test_the_order_of_rows_the_numbers_of_groups_and_forced_tokens_do_not_matter():
    scores, batch = comparisons(12, 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for loss in (DPO(), CPL(), CPL(level="segment", bc=0.5)):
        dense = (
            batch.with_(reward=batch.reward[:, None] * batch.mask) if getattr(loss, "level", "") == "segment" else batch
        )
        value = loss(scores, dense).value
        moved = dense[order].with_(group=7 * dense.group[order] + 3)
        assert torch.allclose(loss(TokenScores(scores.log_prob[order]), moved).value, value)
        longer = torch.cat((torch.full((12, 1), -9.0).double(), scores.log_prob), 1)
        shifted = dense.pad_to(6)
        shifted = shifted.with_(
            **{
                name: getattr(shifted, name).roll(1, 1)
                for name in ("tokens", "mask", "log_prob_ref", "segment")
                + (("reward",) if shifted.reward.dim() == 2 else ())
            },
            present=torch.ones(12, 6, dtype=torch.bool),
        )
        assert torch.allclose(loss(TokenScores(longer), shifted).value, value)


def test_batches_without_comparisons_cost_nothing_and_teach_nothing():
    scores, batch = comparisons()
    tied = batch.with_(reward=torch.ones(8))
    alone = batch.with_(group=torch.arange(8))
    for found in (DPO()(scores, tied), DPO()(scores, alone), CPL()(scores, alone)):
        assert found.value == 0
        assert found.metrics["pairs"] == 0
        assert (gradient(found, scores) == 0).all()


def test_cpl_with_a_reference_and_no_bias_is_dpo():
    scores, batch = comparisons(12, 3)
    dpo, cpl = DPO(0.3)(scores, batch), CPL(0.3, bias=1.0, reference=True)(scores, batch)
    assert torch.allclose(dpo.value, cpl.value, atol=1e-14)
    assert torch.allclose(gradient(dpo, scores), gradient(cpl, scores), atol=1e-14)


def test_cpl_over_a_ranking_is_the_mean_over_all_pairs_and_clones():
    scores, batch = comparisons()
    s = 0.2 * torch.where(batch.mask, scores.log_prob, 0.0).sum(1)
    order = batch.reward.argsort(descending=True).tolist()
    pairs = [(s[i], s[j]) for n, i in enumerate(order) for j in order[n + 1 :]]
    expected = torch.stack([functional.softplus(0.5 * lost - won) for won, lost in pairs]).mean()
    found = CPL(0.2, pairs="all")(scores, batch)
    assert found.metrics["pairs"] == 28
    assert torch.allclose(found.value, expected)
    cloned = CPL(0.2, pairs="all", bc=2.0)(scores, batch)
    assert torch.allclose(cloned.value, expected - 2 * scores.log_prob[batch.mask].mean())


def test_a_tie_counts_half_each_way_in_cpl():
    scores, batch = comparisons(2, 1)
    won, lost = 0.1 * torch.where(batch.mask, scores.log_prob, 0.0).sum(1)
    found = CPL()(scores, batch.with_(reward=torch.ones(2)))
    expected = (functional.softplus(0.5 * lost - won) + functional.softplus(0.5 * won - lost)) / 2
    assert torch.allclose(found.value, expected)
    assert found.metrics["pairs"] == 1


def test_cpl_shifts_leave_the_unbiased_loss_and_move_the_biased_one():
    scores, batch = comparisons()
    batch = batch.with_(mask=torch.ones_like(batch.mask))
    lower = TokenScores(scores.log_prob - 1)
    assert torch.allclose(CPL(bias=1.0)(scores, batch).value, CPL(bias=1.0)(lower, batch).value)
    assert CPL(bias=0.5)(lower, batch).value > CPL(bias=0.5)(scores, batch).value


def test_segments_are_compared_with_those_of_their_number():
    scores, batch = comparisons(8, 4)
    reward = torch.rand(8, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * batch.mask
    terms = []
    for g in range(4):
        i, j = (batch.group == g).nonzero().flatten().tolist()
        for number in range(3):
            here = (batch.segment == number) & batch.mask
            if not (here[i].any() and here[j].any()):
                continue
            won, lost = (i, j) if reward[i, here[i]].sum() > reward[j, here[j]].sum() else (j, i)
            terms.append(
                functional.softplus(
                    0.05 * scores.log_prob[lost, here[lost]].sum() - 0.1 * scores.log_prob[won, here[won]].sum()
                )
            )
    found = CPL(level="segment")(scores, batch.with_(reward=reward))
    assert found.metrics["pairs"] == len(terms) > 3
    assert torch.allclose(found.value, torch.stack(terms).mean())
    with pytest.raises(InputError, match="reward"):
        CPL(level="segment")(scores, batch)


def population(log_prob, winners, losers, beta):
    """Loss of the policy that minimises DPO's loss over all pairs, and its distance KL(pi* || pi) from log_prob."""
    log_ref = winners.log()
    logits = log_ref.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], 1.0, 2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    weight = (winners[:, None] * losers).flatten()

    def closure():
        optimizer.zero_grad()
        h = beta * (logits.log_softmax(0) - log_ref)
        won, lost = h[:, None].expand(-1, len(h)).flatten(), h.expand(len(h), -1).flatten()
        loss = margin_loss(won, lost, weight=weight)
        loss.backward()
        return loss

    optimizer.step(closure)
    return (log_prob.exp() * (log_prob - logits.detach().log_softmax(0))).sum().item()


def test_dpo_finds_the_target_exactly_with_losers_of_differential_information():
    g, beta = torch.Generator().manual_seed(0), 0.5
    base = torch.randn(30, generator=g, dtype=torch.float64)
    log_ref = base.log_softmax(0)
    log_target = (base + 1.5 * torch.randn(30, generator=g, dtype=torch.float64)).log_softmax(0)
    ref = log_ref.exp()
    losers = ref * did_weights(log_target, log_ref, torch.zeros(30, dtype=torch.int64), beta)
    assert population(log_target, ref, losers / losers.sum(), beta) < 1e-10
    assert population(log_target, ref, ref, beta) > 0.5
    assert population(log_target, ref, torch.full_like(ref, 1 / 30), beta) > 0.5


def test_weights_sum_to_1_in_a_group_and_entropy_is_at_most_log_n():
    g = torch.Generator().manual_seed(0)
    target, ref = torch.randn(2, 12, generator=g, dtype=torch.float64)
    group = torch.arange(12) % 3
    weight, entropy = did_weights(target, ref, group, 0.5), did_entropy(target, ref, group)
    for n in range(3):
        rows = group == n
        assert torch.allclose(weight[rows], (-0.5 * (target - ref))[rows].softmax(0))
        q = torch.distributions.Categorical(logits=(target - ref)[rows])
        assert torch.allclose(entropy[rows], q.entropy().expand(4))
    assert torch.allclose(did_entropy(ref, ref, group), torch.full((12,), math.log(4)).double())
    sharp = did_entropy(torch.tensor([0.0, -1e4]), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    assert (sharp == 0).all()


def test_pairs_are_drawn_as_they_are_asked_for():
    n = 6000
    tokens = torch.arange(4).repeat(n)[:, None]
    group = torch.arange(n).repeat_interleave(4)
    reward = torch.tensor([0.0, 1.0, 0.5, 0.0]).repeat(n)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), group, reward=reward)
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([0.4, 0.3, 0.2, 0.1])

    def drawn(loser):
        pairs = draw_pairs(batch, loser, generator, weight.repeat(n))
        assert torch.equal(pairs.group[::2], pairs.group[1::2])
        assert pairs.reward.tolist() == [1.0, 0.0] * (len(pairs) // 2)
        found = torch.zeros(4, 4).index_put((pairs.tokens[::2, 0], pairs.tokens[1::2, 0]), torch.ones(1), True)
        return found / found.sum()

    expected = {"worst": torch.zeros(4, 4), "sample": torch.zeros(4, 4)}
    expected["worst"][1, [0, 3]] = 1 / 2
    expected["sample"][1, [0, 2, 3]] = 1 / 3
    others = weight.expand(4, 4).clone().fill_diagonal_(0)
    expected["did"] = others / others.sum(1, keepdim=True) / 4
    for loser, p in expected.items():
        assert torch.allclose(drawn(loser), p, atol=5 * 0.5 / n**0.5)
    tied = batch.with_(reward=torch.where(group < 2, 1.0, reward))
    assert len(draw_pairs(tied, "worst", generator)) == 2 * (n - 2)
    assert len(draw_pairs(batch[group == batch.tokens[:, 0]][:1], "did", generator, torch.ones(1))) == 0
    with pytest.raises(InputError, match="did"):
        draw_pairs(batch, "did", generator)
    with pytest.raises(InputError, match="best"):
        draw_pairs(batch, "best", generator)


def fitted(tree, log_target, pairs, beta):
    """KL(pi* || pi) over the leaves after DPO on the pairs, from the reference."""
    policy, reference, leaves = TabularPolicy(tree), TabularPolicy(tree), tree.leaves()
    pairs = pairs.with_(log_prob_ref=reference.score(pairs).log_prob.detach())
    optimizer = torch.optim.Adam(policy.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        DPO(beta)(policy.score(pairs), pairs).value.backward()
        optimizer.step()
    log_prob = policy.score(leaves).log_prob.sum(1).detach()
    return (log_target.exp() * (log_target - log_prob)).sum().item()


def test_drawn_pairs_of_differential_information_lead_nearer_to_the_target_than_others():
    beta, wins = 0.5, 0
    for seed in range(5):
        tree = RandomTree(3, 2, seed=seed)
        g = torch.Generator().manual_seed(seed)
        target = TabularPolicy(
            tree, tree.reference + torch.randn(tree.reference.shape, generator=g, dtype=torch.float64)
        )
        sampled = Rollouts(tree, prompts=1000, group=8).draw(TabularPolicy(tree), 0, g).sampled
        with torch.no_grad():
            lp, log_target = target.score(sampled).log_prob.sum(1), target.score(tree.leaves()).log_prob.sum(1)
        lp_ref = sampled.log_prob_old.double().sum(1)
        sampled = sampled.with_(reward=lp - lp_ref)
        even = torch.ones(len(sampled))
        cases = {
            "did": draw_pairs(sampled, "did", g, did_weights(lp, lp_ref, sampled.group, beta)),
            "reference": draw_pairs(sampled, "did", g, even),
            "worst": draw_pairs(sampled, "worst", g),
        }
        n = min(len(x) for x in cases.values())
        kl = {name: fitted(tree, log_target, x[:n], beta) for name, x in cases.items()}
        wins += kl["did"] < min(kl["reference"], kl["worst"])
    assert wins == 5


def swapped(batch, level, levels=4, kinds=4):
    """A share level / levels of the closing brackets of each answer replaced by others."""
    g = torch.Generator().manual_seed(level)
    close = batch.mask & (batch.tokens != kinds)
    key = torch.rand(batch.tokens.shape, generator=g).masked_fill(~close, 2.0)
    hit = key.argsort(1).argsort(1) < (level / levels * close.sum(1, keepdim=True)).ceil()
    other = (batch.tokens + torch.randint(1, kinds, batch.tokens.shape, generator=g)) % kinds
    return batch.with_(tokens=torch.where(hit & close, other, batch.tokens))


def bracket_pairs(n, seed, reference):
    task, g = Brackets(8, 4, 4), torch.Generator().manual_seed(seed)
    prompts = task.prompts(n, 0, g)
    right = prompts.reference.with_(context=prompts.context, reward=torch.ones(n))
    wrong = swapped(right, 2).with_(reward=torch.zeros(n))
    pairs = TokenBatch.joined((right, wrong))
    with torch.no_grad():
        return pairs.with_(log_prob_ref=reference.score(pairs).log_prob)


def test_levels_are_stacked_on_the_untouched_rows():
    reference = Brackets(8, 4, 4).policy()
    pairs = bracket_pairs(20, 0, reference)
    degree = PreferenceDegree(nn.Linear(128, 5), swapped)
    graded = degree.graded(pairs)
    assert graded.level.tolist() == [j for j in range(5) for _ in range(40)]
    assert graded.context is pairs.context
    assert torch.equal(graded.tokens[:40], pairs.tokens)
    assert torch.equal(graded.log_prob_ref[:40], pairs.log_prob_ref)
    assert torch.equal(graded.reward[:40], pairs.reward)
    changed = (graded.tokens.reshape(5, 40, -1) != pairs.tokens).sum((1, 2))
    assert changed[0] == 0
    assert (changed.diff() > 0).all()
    kept = graded[graded.group == 3]
    assert isinstance(kept, GradedBatch)
    assert kept.level.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_without_weight_the_degree_loss_is_dpo_and_with_it_trains_head_and_policy():
    reference = Brackets(8, 4, 4).policy()
    pairs = bracket_pairs(20, 0, reference)
    policy, head = Brackets(8, 4, 4).policy(seed=1), nn.Linear(128, 5)
    graded = PreferenceDegree(head, swapped).graded(pairs)
    scores = policy.score(graded, need=frozenset({"hidden"}))
    inner = DPO()(policy.score(pairs), pairs)
    assert torch.allclose(PreferenceDegree(head, swapped, 0.0)(scores, graded).value, inner.value)
    found = PreferenceDegree(head, swapped, 0.5)(scores, graded)
    assert torch.allclose(found.value, inner.value + 0.5 * found.metrics["degree"])
    found.value.backward()
    assert head.weight.grad.abs().max() > 0
    assert policy.gru.weight_hh_l0.grad.abs().max() > 0
    assert all(x.grad is None for x in reference.parameters())
    with pytest.raises(InputError, match="graded"):
        PreferenceDegree(head, swapped)(scores, pairs)


def degree_run(seed, weight, steps=200):
    """Accuracy of the head, and rank correlation of implicit reward with level, on pairs that were not trained on."""
    task = Brackets(8, 4, 4)
    policy, reference = task.policy(seed=seed), task.policy(seed=seed).requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        degree = PreferenceDegree(nn.Linear(128, 5), swapped, weight)
    optimizer = torch.optim.Adam((*policy.parameters(), *degree.head.parameters()), 1e-3)
    train = degree.graded(bracket_pairs(400, seed, reference))
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        part = train[next(train.deal(8, g))]
        optimizer.zero_grad()
        degree(policy.score(part, need=degree.need), part).value.backward()
        optimizer.step()
    held = degree.graded(bracket_pairs(200, 100 + seed, reference))
    with torch.no_grad():
        scores = policy.score(held, need=degree.need)
        accuracy = degree(scores, held).metrics["degree_accuracy"].item()
        winners = (torch.arange(len(held)) % 400) < 200
        implicit = (scores.log_prob - reference.score(held).log_prob).sum(1)[winners]
    return accuracy, rank_correlation(-implicit.numpy(), held.level[winners].numpy()).mean


@pytest.mark.slow
def test_the_head_learns_to_tell_how_much_was_removed_from_pairs_it_has_not_seen():
    # Five levels, so chance is 0.2; on so short answers it does not get far above.
    assert degree_run(0, 0.1)[0] > 0.25


def test_impossible_values_are_refused():
    for wrong in ({"beta": 0.0}, {"label_smoothing": 0.5}, {"ipo": True, "label_smoothing": 0.1}):
        with pytest.raises(InputError, match=list(wrong)[-1]):
            DPO(**wrong)
    for wrong in ({"alpha": -1.0}, {"bias": 0.0}, {"bias": 1.5}, {"bc": -1.0}, {"level": "word"}, {"pairs": "some"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            CPL(**wrong)
    with pytest.raises(InputError, match="weight"):
        PreferenceDegree(nn.Linear(4, 3), swapped, -1.0)
    with pytest.raises(InputError, match="levels"):
        PreferenceDegree(nn.Linear(4, 1), swapped)
    scores, batch = comparisons()
    with pytest.raises(InputError, match="log_prob_ref"):
        DPO()(scores, batch.with_(log_prob_ref=None))
    with pytest.raises(InputError, match="reward"):
        CPL()(scores, batch.with_(reward=None))


def test_rows_of_a_search_that_hold_no_sequence_are_compared_with_nothing():
    scores, batch = comparisons(8, 4)
    empty = torch.arange(8) == batch.group.argsort(stable=True)[0]
    batch = batch.with_(mask=batch.mask & ~empty.unsqueeze(1), reward=batch.reward.masked_fill(empty, -math.inf))
    found = DPO()(scores, batch)
    assert torch.equal(found.value, DPO()(scores[~empty], batch[~empty]).value)
    assert found.metrics["pairs"] == 3
    for loser in ("worst", "sample", "did"):
        drawn = draw_pairs(batch, loser, torch.Generator().manual_seed(0), torch.ones(8))
        assert drawn.mask.any(1).all()
        assert len(drawn) == 6


def test_segments_may_be_numbered_beyond_the_length():
    scores, batch = comparisons(8, 4)
    batch = batch.with_(reward=torch.rand(8, 5, generator=torch.Generator().manual_seed(3)) * batch.mask)
    loss = CPL(level="segment")
    far = batch.with_(segment=1000 * batch.segment + 7)
    assert torch.allclose(loss(scores, far).value, loss(scores, batch).value)


def test_log_ratios_of_half_precision_scores_are_taken_in_single_precision():
    scores, batch = comparisons()
    half = TokenScores(scores.log_prob.bfloat16())
    batch = batch.with_(log_prob_ref=half.log_prob.float() - 1e-3)
    expected = DPO()(TokenScores(half.log_prob.float()), batch)
    rounded = batch.with_(log_prob_ref=batch.log_prob_ref.bfloat16())
    assert torch.equal(DPO()(half, batch).value, expected.value)
    assert DPO()(half, rounded).value.dtype == torch.float32
    assert CPL()(half, rounded).value.dtype == torch.float32


def test_the_trainer_trains_and_keeps_a_head_that_is_part_of_the_policy(tmp_path):
    policy = Brackets(8, 4, 4).policy()
    pairs = bracket_pairs(20, 0, policy)
    policy.degree = nn.Linear(128, 5)
    before = policy.degree.weight.detach().clone()
    degree = PreferenceDegree(policy.degree, swapped)
    source = Recorded(degree.graded(pairs), 8)
    for rows in (None, 16):
        trainer = SequencePolicyOptimization(policy, source, Objective(policy=degree), micro_batch=rows)
        trainer.train(2, checkpoint=tmp_path / f"{rows}")
        assert (policy.degree.weight - before).abs().max() > 1e-4
        before = policy.degree.weight.detach().clone()
