import pytest
import torch

from core.errors import InputError
from core.sequence.batch import LossResult, TokenBatch, TokenScores
from core.sequence.reductions import reduce
from core.sequence.resets import DatasetReset, RollInCloning
from core.sequence.tasks.brackets import Brackets

LENGTHS = torch.tensor([6, 3, 5, 1])


def answers():
    """Right answers to four prompts, of one to six tokens."""
    mask = torch.arange(6) < LENGTHS[:, None]
    tokens = torch.where(mask, torch.arange(1, 25).reshape(4, 6), 0)
    segment = torch.tensor([0, 0, 1, 1, 1, 2]).expand(4, 6)
    return TokenBatch(tokens, mask, torch.arange(4), torch.zeros(4, 1), segment=segment)


def cuts(reset, n=4000, step=0, seed=0):
    """``(4, n)`` forced tokens of n rollouts a prompt."""
    return reset(answers(), n, step, torch.Generator().manual_seed(seed)).length.reshape(4, n)


def rolled(reset, seed=0, n=8):
    task = Brackets(6, 3, 2)
    policy = task.policy()
    prompts = task.prompts(10, 0, torch.Generator().manual_seed(5))
    right = prompts.reference.with_(context=prompts.context)
    generator = torch.Generator().manual_seed(seed)
    prefix = reset(right, n, 0, generator)
    return policy, right, prefix, policy.sample(prompts.context, n, task.max_length, 1.0, prefix, generator)


def test_what_is_forced_is_the_beginning_of_the_answer_and_no_more():
    prefix = DatasetReset()(answers(), 50, 0, torch.Generator().manual_seed(0))
    assert prefix.group.tolist() == [p for p in range(4) for _ in range(50)]
    assert not prefix.mask.any()
    assert torch.equal(prefix.present, torch.arange(6) < prefix.length[:, None])
    assert torch.equal(prefix.tokens, torch.where(prefix.present, answers().tokens[prefix.group], 0))


def test_cuts_are_uniform_from_the_prompt_to_the_whole_answer():
    found = cuts(DatasetReset())
    for row, length in zip(found, LENGTHS.tolist(), strict=True):
        share = torch.bincount(row, minlength=7) / 4000
        p = 1 / (length + 1)
        assert ((share[: length + 1] - p).abs() < 5 * (p * (1 - p) / 4000) ** 0.5).all()
        assert share[length + 1 :].sum() == 0


def test_a_share_of_the_rollouts_starts_at_the_prompt():
    found = cuts(DatasetReset(prob=0.3))[0]
    p = 0.7 + 0.3 / 7
    assert abs((found == 0).float().mean() - p) < 5 * (p * (1 - p) / 4000) ** 0.5


def test_cuts_at_segments_fall_on_their_borders():
    found = cuts(DatasetReset(cut="segment"))
    for row, borders in zip(found, ([0, 2, 5, 6], [0, 2, 3], [0, 2, 5], [0, 1]), strict=True):
        assert torch.unique(row).tolist() == borders
        share = torch.bincount(row, minlength=7)[borders] / 4000
        assert ((share - 1 / len(borders)).abs() < 0.04).all()


@pytest.mark.parametrize("cut", ["uniform", "segment"])
def test_a_curriculum_begins_at_the_end_and_ends_as_if_there_were_none(cut):
    reset = DatasetReset(cut=cut, curriculum=10)
    first = cuts(reset, step=0)
    before_last = {"uniform": LENGTHS - 1, "segment": torch.tensor([5, 2, 2, 0])}[cut]
    for row, length, before in zip(first, LENGTHS.tolist(), before_last.tolist(), strict=True):
        assert torch.unique(row).tolist() == [before, length]
    earliest = torch.stack([cuts(reset, step=s).amin(1) for s in range(12)])
    assert (earliest.diff(dim=0) <= 0).all()
    assert (earliest[-2:] == 0).all()
    assert torch.equal(cuts(reset, step=10), cuts(DatasetReset(cut=cut)))


def test_without_resets_rollouts_are_those_from_the_prompts():
    policy, right, prefix, found = rolled(DatasetReset(prob=0.0))
    plain = policy.sample(right.context, 8, 6, 1.0, None, torch.Generator().manual_seed(0))
    assert not prefix.present.any()
    for name in ("tokens", "mask", "group", "log_prob_old"):
        assert torch.equal(getattr(found, name), getattr(plain, name))


def test_rollouts_go_on_from_the_cut_and_forced_tokens_have_no_gradient():
    policy, right, prefix, found = rolled(DatasetReset())
    given = prefix.pad_to(6).present[:, : found.tokens.shape[1]]
    assert torch.equal(found.valid & ~found.mask, given)
    assert torch.equal(found.tokens[given], right.tokens[found.group][:, : given.shape[1]][given])
    scores = policy.score(found)
    assert torch.allclose(scores.log_prob[found.mask], found.log_prob_old[found.mask], atol=1e-5)
    leaf = scores.log_prob.detach().requires_grad_()
    for how in ("token", "sequence", "row_sum", "constant"):
        slope = torch.autograd.grad(reduce(-leaf, found.mask, how), leaf)[0]
        assert torch.equal(slope != 0, found.mask)


def test_whole_answers_leave_rows_without_loss():
    whole = answers().with_(present=answers().mask, mask=torch.zeros(4, 6, dtype=torch.bool))
    log_prob = torch.zeros(4, 6, requires_grad=True)
    for how in ("token", "sequence", "row_sum", "constant"):
        value = reduce(-log_prob, whole.mask, how)
        value.backward()
        assert value == 0
    assert (log_prob.grad == 0).all()


def test_cloning_of_what_was_forced_is_added_and_reaches_nothing_else():
    policy, _, _, found = rolled(DatasetReset())

    def inner(scores, batch):
        return LossResult(reduce(-scores.log_prob, batch.mask, "token"), {"inner": torch.zeros(())})

    leaf = policy.score(found).log_prob.detach().requires_grad_()
    scores = TokenScores(leaf)
    forced = found.valid & ~found.mask
    both = RollInCloning(inner, 0.3)(scores, found)
    assert torch.allclose(both.value, inner(scores, found).value - 0.3 * leaf[forced].mean())
    assert set(both.metrics) == {"inner", "roll_in"}
    extra = both.value - inner(scores, found).value
    assert torch.equal(torch.autograd.grad(extra, leaf)[0].abs() > 1e-9, forced)
    assert RollInCloning(inner, 0.0)(scores, found).value == inner(scores, found).value
    plain = found.with_(mask=found.valid)
    assert RollInCloning(inner)(scores, plain).value == inner(scores, plain).value


def test_impossible_values_and_references_are_refused():
    for wrong in ({"prob": 1.5}, {"cut": "word"}, {"curriculum": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            DatasetReset(**wrong)
    with pytest.raises(InputError, match="weight"):
        RollInCloning(lambda scores, batch: LossResult(torch.zeros(())), -1.0)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(InputError, match="one for each prompt"):
        DatasetReset()(answers()[:3].with_(group=torch.tensor([0, 0, 1])), 2, 0, generator)
    with pytest.raises(InputError, match="segment"):
        DatasetReset(cut="segment")(answers().with_(segment=None), 2, 0, generator)
    mixed = answers()[torch.tensor([2, 0, 3, 1])]
    first = DatasetReset()(answers(), 3, 0, torch.Generator().manual_seed(1))
    assert torch.equal(DatasetReset()(mixed, 3, 0, torch.Generator().manual_seed(1)).tokens, first.tokens)
