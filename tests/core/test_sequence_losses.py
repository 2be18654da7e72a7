from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional as F

from core.errors import InputError
from core.sequence.advantages import GroupRelative, LeaveOneOut
from core.sequence.any_loss import AnyLoss
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.losses import (
    CTC,
    GRPO,
    ClipCov,
    CrossEntropy,
    EntropyBonus,
    ForkingTokens,
    KLCov,
    MinimumRisk,
    Reinforce,
    clip_higher,
)
from core.sequence.reductions import reduce
from core.sequence.surrogate import covariance, largest, log_ratio, lots, ratio_loss
from core.sequence.windows import Windowed
from tests.core.token_batches import gradient, ragged, scores_of

UNCLIPPED = GRPO(low=1.0, high=math.inf)


def on_policy(batch: TokenBatch) -> TokenScores:
    return TokenScores(batch.need("log_prob_old").clone().requires_grad_())


def test_cross_entropy_is_that_of_torch() -> None:
    batch = ragged()
    logits = torch.randn(12, 7, 5, dtype=torch.float64)
    lp = logits.log_softmax(-1).gather(2, batch.tokens.unsqueeze(2)).squeeze(2)
    found = CrossEntropy()(TokenScores(lp), batch).value
    torch.testing.assert_close(found, F.cross_entropy(logits[batch.mask], batch.tokens[batch.mask]))


def test_ctc_is_the_sum_over_all_labellings() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, generator=g, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[1, 2, 9], [2, 9, 0]])  # 9 ends them and is no target
    batch = TokenBatch(tokens, tokens != 0, torch.arange(2))
    frames = torch.tensor([4, 3])
    found = CTC(blank=0, eos=9)(TokenScores(torch.zeros(2, 3), logits=logits, frames=frames), batch)
    lp, total = logits.log_softmax(-1), []
    for b, wanted in enumerate(([1, 2], [2])):
        p = torch.zeros((), dtype=torch.float64)
        for path in torch.cartesian_prod(*[torch.arange(3)] * int(frames[b])).tolist():
            merged = [x for i, x in enumerate(path) if i == 0 or x != path[i - 1]]
            if [x for x in merged if x] == wanted:
                p = p + torch.stack([lp[b, t, x] for t, x in enumerate(path)]).sum().exp()
        total.append(-p.log() / len(wanted))
    torch.testing.assert_close(found.value, torch.stack(total).mean())
    assert found.metrics["impossible"] == 0


def test_references_that_no_labelling_gives_are_counted_and_add_nothing() -> None:
    logits = torch.randn(2, 2, 3, requires_grad=True)
    tokens = torch.tensor([[1, 1, 2], [1, 0, 0]])
    scores = TokenScores(torch.zeros(2, 3), logits=logits, frames=torch.tensor([2, 2]))
    found = CTC()(scores, TokenBatch(tokens, tokens != 0, torch.arange(2)))
    assert found.metrics["impossible"] == 1
    slope = gradient(found.value, logits)
    assert torch.isfinite(slope).all()
    assert not slope[0].any()


def test_the_gradient_of_reinforce_is_the_weighted_score() -> None:
    batch = ragged()
    scores = scores_of(batch)
    found = gradient(Reinforce()(scores, batch).value, scores.log_prob)
    torch.testing.assert_close(found, -batch.need("advantage") / len(batch))


def test_a_baseline_leaves_the_expected_gradient_unchanged() -> None:
    # All outcomes of one softmax, weighted by their probability; RLOO's other sample is an independent one.
    z = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    r = torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64)
    exact = gradient(-(z.softmax(0) * r).sum(), z)
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    lp, total = z.log_softmax(0), torch.zeros(3, dtype=torch.float64)
    for a, b in zip(first, second, strict=True):
        pair = torch.stack([a, b])
        drawn = TokenBatch(pair.unsqueeze(1), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.int64))
        batch = LeaveOneOut()(drawn.with_(reward=r[pair]))
        loss = Reinforce()(TokenScores(lp[pair].unsqueeze(1)), batch).value
        total += (lp[a] + lp[b]).exp().detach() * gradient(loss, z)
    torch.testing.assert_close(total, exact)


def test_minimum_risk_is_the_expected_risk_of_a_renormalised_group() -> None:
    batch = ragged()
    scores = scores_of(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for g in range(3):
        rows = batch.group == g
        p = (scores.log_prob * batch.mask).sum(1)[rows].softmax(0)
        risk = -batch.need("reward").sum(1)[rows]
        expected = expected + (p * (risk - risk.mean())).sum() / 3
    found = MinimumRisk()(scores, batch).value
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, scores.log_prob), gradient(expected, scores.log_prob))
    with pytest.raises(InputError, match="MinimumRisk needs at least 2"):
        MinimumRisk()(scores[:4], batch[torch.arange(4)])


def test_on_policy_all_ratio_losses_have_the_gradient_of_reinforce() -> None:
    batch = ragged()
    scores = on_policy(batch)
    wanted = gradient(Reinforce(how="token")(scores, batch).value, scores.log_prob)
    for loss in (GRPO(), clip_higher(), KLCov(ratio=1.0), KLCov(ratio=0.1, beta=5.0)):
        torch.testing.assert_close(gradient(loss(scores, batch).value, scores.log_prob), wanted)


def test_clipping_ends_the_gradient_of_ratios_that_went_too_far_and_of_no_others() -> None:
    x = torch.tensor([[-1.0, -0.1, 0.1, 1.0]] * 2, dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 4)
    terms, clipped = ratio_loss(x, advantage, (0.2, 0.2))
    assert clipped.tolist() == [[False, False, False, True], [True, False, False, False]]
    assert (gradient(terms.sum(), x) == 0).tolist() == clipped.tolist()
    assert (terms >= ratio_loss(x, advantage)[0]).all()


def test_sequence_ratios_are_the_mean_of_the_tokens() -> None:
    batch = GroupRelative()(ragged())
    scores = scores_of(batch, step=0.5)
    found, _ = log_ratio(scores, batch, "sequence")
    for b in range(len(batch)):
        n = int(batch.length[b])
        own = (scores.log_prob - batch.need("log_prob_old"))[b, :n].mean()
        torch.testing.assert_close(found[b, :n], own.expand(n))
    result = GRPO(level="sequence", how="sequence")(scores, batch)
    value = result.value
    # The divergence is that of the policies, not of a row's mean ratios.
    assert result.metrics["kl"] == GRPO()(scores, batch).metrics["kl"]
    ratio = found[:, 0].exp()
    a = batch.need("advantage")[:, 0]
    torch.testing.assert_close(value, torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean())


def test_the_divergence_from_the_reference_is_zero_at_it_and_positive_elsewhere() -> None:
    batch = ragged()
    scores = scores_of(batch)
    at = batch.with_(log_prob_ref=scores.log_prob.detach())
    assert GRPO(beta=1.0)(scores, at).value == GRPO()(scores, at).value
    beta = GRPO(beta=0.5)(scores, batch)
    assert beta.metrics["kl_ref"] > 0
    torch.testing.assert_close(beta.value, GRPO()(scores, batch).value + 0.5 * beta.metrics["kl_ref"])


def test_ratios_that_overflow_are_cut_and_counted() -> None:
    batch = ragged(dtype=torch.float32)
    far = batch.need("log_prob_old").clone()
    far[0, 0] = -500.0
    found = UNCLIPPED(on_policy(batch), batch.with_(log_prob_old=far))
    assert torch.isfinite(found.value)
    assert found.metrics["cut_ratios"] == 1


def test_a_drawn_token_that_was_impossible_is_refused_with_its_row() -> None:
    batch = ragged()
    lp = batch.need("log_prob_old").clone()
    lp[7, 0] = -torch.inf
    with pytest.raises(InputError, match="log_prob_old: row 7 holds -inf"):
        GRPO()(on_policy(batch), batch.with_(log_prob_old=lp))
    padding = batch.need("log_prob_old").masked_fill(~batch.mask, -torch.inf)
    assert torch.isfinite(GRPO()(on_policy(batch), batch.with_(log_prob_old=padding)).value)


def test_the_covariance_is_that_of_the_valid_tokens_and_carries_no_gradient() -> None:
    batch = ragged()
    scores = scores_of(batch)
    found = covariance(scores.log_prob, batch.need("advantage"), batch.mask)
    pair = torch.stack([scores.log_prob[batch.mask], batch.need("advantage")[batch.mask]])
    assert float(found[batch.mask].mean()) == pytest.approx(float(torch.cov(pair.detach(), correction=0)[0, 1]))
    assert not found[~batch.mask].any()
    assert not found.requires_grad


def test_equal_advantages_select_nothing() -> None:
    batch = ragged(dtype=torch.float32)
    batch = batch.with_(advantage=torch.where(batch.mask, 0.3, 0.0))
    scores = scores_of(batch)
    assert not covariance(scores.log_prob, batch.need("advantage"), batch.mask).any()
    assert KLCov(ratio=0.5)(scores, batch).metrics["restrained"] == 0
    assert ClipCov(ratio=0.5, low=0.0)(scores, batch).metrics["dropped"] == 0


def test_kl_cov_is_the_unclipped_loss_and_a_term_on_the_tokens_of_highest_covariance() -> None:
    batch = ragged()
    scores = scores_of(batch, step=0.5)
    plain = UNCLIPPED(scores, batch).value
    assert KLCov(beta=0.0)(scores, batch).value == plain
    n, cov = int(batch.mask.sum()), covariance(scores.log_prob, batch.need("advantage"), batch.mask)
    for ratio in (1e-9, 0.1, 0.2):
        k = max(1, int(ratio * n))
        top = cov.flatten().topk(k).indices
        moved = (scores.log_prob - batch.need("log_prob_old")).abs().flatten()[top].sum()
        torch.testing.assert_close(KLCov(ratio=ratio, beta=2.0)(scores, batch).value, plain + 2 * moved / n)


def test_kl_cov_does_not_pull_at_tokens_that_rounding_alone_has_moved() -> None:
    batch = ragged(dtype=torch.float32)
    noise = 5e-7 * torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(2))
    scores = scores_of(batch, step=0.0)
    batch = batch.with_(log_prob_old=scores.log_prob.detach() + noise)
    wanted = gradient(UNCLIPPED(scores, batch).value, scores.log_prob)
    loss = KLCov(ratio=0.5, beta=5.0)(scores, batch)
    assert loss.metrics["restrained"] > 0
    torch.testing.assert_close(gradient(loss.value, scores.log_prob), wanted)


def test_clip_cov_drops_a_few_tokens_of_the_range_at_random_and_divides_by_all() -> None:
    batch = ragged(rows=60)
    scores = scores_of(batch, step=0.5)
    cov = covariance(scores.log_prob, batch.need("advantage"), batch.mask)
    n = int(batch.mask.sum())
    loss = ClipCov(ratio=0.1, low=0.05, high=0.8, clip=(0.2, 0.2))
    seen = torch.zeros_like(batch.mask)
    for step in range(30):
        # Moves that are small beside the covariances, and draw anew.
        scores = TokenScores((scores.log_prob.detach() - 1e-5 * step * batch.mask).requires_grad_())
        whole = gradient(GRPO()(scores, batch).value, scores.log_prob)
        found = loss(scores, batch)
        assert loss(scores, batch).value == found.value
        slope = gradient(found.value, scores.log_prob)
        dropped = slope != whole
        assert 0 < int(dropped.sum()) <= int(0.1 * n)
        assert found.metrics["dropped"] * n == pytest.approx(int(dropped.sum()))
        assert not slope[dropped].any()
        seen |= dropped
    assert (batch.mask & (cov > 0.05) & (cov < 0.8))[seen].all()
    assert int(seen.sum()) > int(0.15 * n)


def test_clip_cov_without_a_token_in_its_range_is_the_clipped_loss() -> None:
    batch = ragged()
    scores = scores_of(batch, step=0.5)
    found = ClipCov(ratio=0.5, low=1e3, high=1e4, clip=(0.2, 0.28))(scores, batch)
    assert found.value == clip_higher()(scores, batch).value


def test_lots_are_uniform_and_follow_from_the_scores() -> None:
    x = torch.full((40, 50), -0.5)
    found = lots(x)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(found.var()) == pytest.approx(1 / 12, abs=0.01)
    assert (lots(x) == found).all()
    assert not (lots(x + 1e-6) == found).any()
    assert lots(x[:1, :1]).shape == (1, 1)
    assert lots(x[:0]).shape == (0, 50)


def test_the_largest_are_taken_only_where_they_are_allowed() -> None:
    x = torch.tensor([[5.0, 4.0, 3.0], [2.0, 1.0, 1.0]])
    allowed = torch.tensor([[False, True, True], [True, True, True]])
    assert largest(x, allowed, torch.tensor(2)).tolist() == [[False, True, True], [False, False, False]]
    assert largest(x, allowed, torch.tensor(99)).tolist() == allowed.tolist()
    assert int(largest(torch.zeros(2, 3), allowed, torch.tensor(3)).sum()) == 3


def test_an_entropy_bonus_is_reduced_like_the_loss_it_is_added_to() -> None:
    batch = ragged()
    scores = scores_of(batch)
    for inner in (GRPO(), Reinforce(), MinimumRisk(), Windowed()):
        found = EntropyBonus(inner, 0.3)(scores, batch)
        entropy = scores.need("entropy").detach()
        torch.testing.assert_close(
            found.value, inner(scores, batch).value - 0.3 * reduce(entropy, batch.mask, inner.how)
        )
        assert found.metrics["entropy"] == pytest.approx(float(entropy[batch.mask].mean()))
    assert EntropyBonus(GRPO()).need == {"entropy"}


@pytest.mark.parametrize("exact", [False, True])
def test_forking_tokens_keep_the_share_of_highest_entropy(exact: bool) -> None:
    batch = ragged(rows=30)
    scores = scores_of(batch)
    n, entropy = int(batch.mask.sum()), scores.need("entropy")
    whole = clip_higher()(scores, batch).value
    assert ForkingTokens(share=1.0, exact=exact)(scores, batch).value == whole
    loss = ForkingTokens(share=0.2, exact=exact)
    keep = loss.keep(entropy, batch.mask)
    assert int(keep.sum()) == pytest.approx(0.2 * n, abs=1)
    assert entropy[keep].min() > entropy[batch.mask & ~keep].max()
    rest = ForkingTokens(share=0.2, exact=exact, lowest=True)
    assert (rest.keep(entropy, batch.mask) == (batch.mask & ~keep)).all()
    torch.testing.assert_close(loss(scores, batch).value + rest(scores, batch).value, whole)
    slope = gradient(loss(scores, batch).value, scores.log_prob)
    assert not slope[~keep].any()


def test_equal_entropies_keep_all_tokens_unless_the_share_is_exact() -> None:
    batch = ragged(rows=30)
    flat = TokenScores(scores_of(batch).log_prob, entropy=torch.zeros(30, 7, dtype=torch.float64))
    n = int(batch.mask.sum())
    assert ForkingTokens()(flat, batch).metrics["kept"] == 1
    assert round(float(ForkingTokens(exact=True)(flat, batch).metrics["kept"]) * n) == int(0.2 * n)


def test_wrappers_nest_and_pass_on_what_is_read() -> None:
    batch = ragged()
    scores = scores_of(batch)
    nested = EntropyBonus(ForkingTokens(Windowed(kernel=3)), 0.1)
    assert nested.need == {"entropy"}
    assert nested.how == "row_sum"
    assert torch.isfinite(nested(scores, batch).value)
    with pytest.raises(InputError, match=r"inner: 'MinimumRisk' is not a sum over tokens"):
        ForkingTokens(MinimumRisk())
    with pytest.raises(InputError, match=r"TokenScores\.entropy"):
        nested(TokenScores(scores.log_prob), batch)


def all_losses() -> list[Any]:
    return [
        CrossEntropy(),
        Reinforce(),
        MinimumRisk(),
        GRPO(beta=0.1),
        GRPO(level="sequence"),
        GRPO(how="constant"),
        KLCov(ratio=0.2),
        ClipCov(ratio=0.2, low=0.1),
        ForkingTokens(),
        EntropyBonus(GRPO()),
        Windowed(),
        Windowed(baseline="group", pad="none", kernel=3),
    ]


@pytest.mark.parametrize("loss", all_losses(), ids=lambda loss: loss.name)
def test_padding_has_no_gradient_and_no_influence(loss: Any) -> None:
    batch = ragged(rows=24)
    scores = scores_of(batch)
    found = loss(scores, batch)
    assert found.value.dim() == 0
    assert not gradient(found.value, scores.log_prob)[~batch.mask].any()
    assert not any(x.requires_grad for x in found.metrics.values())
    other = TokenScores(
        scores.log_prob.masked_fill(~batch.mask, -7.0), scores.need("entropy").masked_fill(~batch.mask, 9)
    )
    torch.testing.assert_close(loss(other, batch).value, found.value)


@pytest.mark.parametrize("loss", all_losses(), ids=lambda loss: loss.name)
def test_half_precision_scores_are_reduced_in_single_precision(loss: Any) -> None:
    batch = ragged(rows=24, dtype=torch.float32)
    scores = scores_of(batch)
    half = TokenScores(scores.log_prob.bfloat16(), scores.need("entropy").bfloat16())
    found = loss(half, batch).value
    rounded = TokenScores(half.log_prob.float(), half.need("entropy").float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(rounded, batch).value)


@pytest.mark.parametrize("loss", all_losses(), ids=lambda loss: loss.name)
def test_a_batch_in_which_nothing_counts_has_a_zero_loss(loss: Any) -> None:
    batch = ragged(rows=6)
    empty = batch.with_(mask=torch.zeros_like(batch.mask), present=batch.mask, advantage=torch.zeros(6, 7))
    scores = scores_of(batch)
    value = loss(scores, empty).value
    assert float(value.detach()) == 0
    assert not gradient(value, scores.log_prob).any()


def test_a_loss_is_read_from_a_configuration_by_its_name() -> None:
    read: TypeAdapter[Any] = TypeAdapter(AnyLoss)
    assert read.validate_python({"name": "kl_cov", "ratio": 0.02}) == KLCov(ratio=0.02)
    assert read.validate_python({"name": "clip_cov", "clip": [0.2, 0.28]}) == ClipCov(clip=(0.2, 0.28))
    nested = {"name": "entropy_bonus", "weight": 0.1, "inner": {"name": "forking_tokens", "inner": {"name": "grpo"}}}
    assert read.validate_python(nested) == EntropyBonus(ForkingTokens(GRPO()), 0.1)
    for name in (
        "cross_entropy",
        "ctc",
        "reinforce",
        "minimum_risk",
        "grpo",
        "pcpg",
        "forking_tokens",
        "dpo",
        "cpl",
        "oreo",
    ):
        assert read.validate_python({"name": name}).name == name
    read.json_schema()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"name": "kl_cov", "ratoi": 0.02}, "kl_cov.ratoi"),
        ({"name": "kl_cov", "ratio": 2}, "KLCov.ratio: 2.0 is not in"),
        ({"name": "kl_cov", "ratio": "many"}, "kl_cov.ratio"),
        ({"name": "kl_cov", "beta": -1}, "KLCov.beta"),
        ({"name": "clip_cov", "low": 3, "high": 2}, "ClipCov.high"),
        ({"name": "clip_cov", "clip": [-1, 1]}, "ClipCov.clip"),
        ({"name": "grpo", "how": "mean"}, "grpo.how"),
        ({"name": "grpo", "low": 1.2}, "GRPO.low"),
        ({"name": "grpo", "high": -1}, "GRPO.high"),
        ({"name": "grpo", "beta": -1}, "GRPO.beta"),
        ({"name": "grpo", "level": "word"}, "grpo.level"),
        ({"name": "forking_tokens", "share": 0}, "ForkingTokens.share"),
        ({"name": "forking_tokens", "inner": {"name": "minimum_risk"}}, "ForkingTokens.inner"),
        ({"name": "entropy_bonus"}, "entropy_bonus.inner"),
        ({"name": "ppo"}, "'ppo' found using 'name'"),
        ({"ratio": 0.02}, "name"),
    ],
)
def test_a_configuration_with_an_unknown_key_or_value_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(AnyLoss).validate_python(given)
    assert named in str(refused.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("loss", all_losses(), ids=lambda loss: loss.name)
def test_losses_are_the_same_on_a_gpu(loss: Any) -> None:
    batch = ragged(rows=24, dtype=torch.float32)
    scores = scores_of(batch)

    def there(x: Tensor) -> Tensor:
        return x.detach().cuda()

    found = loss(TokenScores(there(scores.log_prob), there(scores.need("entropy"))), batch.to("cuda")).value
    torch.testing.assert_close(found.cpu(), loss(scores, batch).value.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", all_losses(), ids=lambda loss: loss.name)
def test_a_batch_without_sequences_or_without_a_valid_token_costs_nothing(loss: Any) -> None:
    batch = ragged(rows=24)
    scores = scores_of(batch)
    nothing = batch.with_(mask=torch.zeros_like(batch.mask), present=batch.mask)
    for rows, some in ((slice(0, 0), batch), (slice(None), nothing)):
        assert loss(scores[rows], some[rows]).value == 0


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(InputError, match="'response' is not token or sequence"):
        GRPO(level="response")  # type: ignore[arg-type]
