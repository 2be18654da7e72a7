"""Rewards are the edit distances of a library, and potential-based."""

import editdistance
import pytest
import torch

from apps.lipreading.methods import Method
from apps.lipreading.rewards import reward, spelled, word_edits, words
from apps.lipreading.sources import references
from apps.lipreading.training import method_reward
from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.losses import Reinforce
from core.sequence.windows import Windowed
from simulators.lips import alphabet

SAID = ["set red at a one now", "bin blue by b two soon", "a two again", "lay"]
WRITTEN = ["set red at one now", "pin blue by be two soon", "a to again again", "soon please"]


def batches(written: list[str] = WRITTEN) -> tuple[TokenBatch, TokenBatch]:
    reference = references(*alphabet.encode(SAID))
    return references(*alphabet.encode(written)), reference


def test_dense_rewards_add_up_to_one_less_the_error_rate():
    batch, reference = batches()
    dense, cer = reward("dense", batch, reference), reward("cer", batch, reference)
    torch.testing.assert_close(dense.sum(1), cer)
    for row, (said, written) in enumerate(zip(SAID, WRITTEN, strict=True)):
        assert float(cer[row]) == pytest.approx(1 - editdistance.eval(said, written) / len(said))


def test_a_dense_reward_is_the_step_of_a_librarys_distance():
    batch, reference = batches()
    dense = reward("dense", batch, reference)
    for row, (said, written) in enumerate(zip(SAID, WRITTEN, strict=True)):
        before = len(said)
        for t in range(len(written)):
            after = editdistance.eval(said, written[: t + 1])
            assert float(dense[row, t]) == pytest.approx((before - after) / len(said), abs=1e-6)
            before = after
        assert not dense[row, len(written) :].any()  # neither the end symbol nor padding earns anything


def test_words_are_compared_as_a_library_compares_them():
    batch, reference = batches()
    edits, count = word_edits(batch, reference)
    assert edits.tolist() == [editdistance.eval(a.split(), b.split()) for a, b in zip(WRITTEN, SAID, strict=True)]
    assert count.tolist() == [len(said.split()) for said in SAID]
    torch.testing.assert_close(reward("wer", batch, reference), 1 - edits / count)


def test_words_do_not_depend_on_spaces_around_them():
    tokens = alphabet.encode(["  at  a ", "at a"])[0]
    number, there = words(references(tokens, (tokens > 0).sum(1) - 1))
    assert there.sum(1).tolist() == [2, 2]
    assert number[0, :2].tolist() == number[1, :2].tolist()


def test_symbols_that_are_no_characters_part_no_word():
    whole, parted = [5, 12, 17, alphabet.EOS, 0, 0], [5, alphabet.PAD, 12, alphabet.SOS, 17, alphabet.EOS]
    tokens = torch.tensor([whole, parted])
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    number, there = words(TokenBatch(tokens, mask, torch.arange(2)))
    assert there.sum(1).tolist() == [1, 1]
    assert number[0, 0] == number[1, 0]


def test_exact_is_one_for_the_reference_alone():
    batch, reference = batches([*SAID[:2], *WRITTEN[2:]])
    assert reward("exact", batch, reference).tolist() == [1, 1, 0, 0]
    assert float(reward("hit", batch, reference)[0].sum()) == pytest.approx(1)


def test_several_transcripts_of_a_clip_share_its_reference():
    batch, reference = batches()
    order = torch.tensor([2, 0, 2, 3, 1])
    again = batch[order].with_(group=order)
    torch.testing.assert_close(reward("dense", again, reference), reward("dense", batch, reference)[order])


def test_a_transcript_that_never_ends_is_counted_as_it_is():
    batch, reference = batches()
    endless = batch.with_(tokens=torch.full_like(batch.tokens, 5), mask=torch.ones_like(batch.mask))
    assert float(reward("cer", endless, reference)[3]) < 0  # more wrong characters than there are right ones
    assert bool(spelled(endless).all())


def test_a_coin_does_not_hang_on_what_is_written():
    batch, reference = batches(["bin"] * 200)
    batch = batch.with_(group=torch.zeros_like(batch.group))
    torch.manual_seed(0)
    earned = reward("random", batch, reference)
    assert set(earned.tolist()) == {0.0, 1.0}
    assert 70 < earned.sum() < 130
    torch.manual_seed(0)
    assert torch.equal(reward("random", batch, reference), earned)


def test_a_reference_without_characters_is_refused():
    batch, reference = batches()
    with pytest.raises(InputError, match="reference 0: has no characters"):
        reward("cer", batch, reference.with_(tokens=torch.full_like(reference.tokens, alphabet.EOS)))


def test_losses_that_add_up_symbols_get_rewards_over_the_length():
    batch, reference = batches()
    plain = Method(name="a", loss=Reinforce(), estimator={"name": "whole"})
    n = torch.tensor([len(said) for said in SAID])
    torch.testing.assert_close(method_reward(plain, batch, reference), reward("cer", batch, reference) / n)
    spread = method_reward(Method(name="b", loss=Windowed(), reward="exact"), batch[[0]], reference)
    assert spread.shape == batch.tokens[:1].shape


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": {"name": "reinforce"}}, "estimator: is required"),
        ({"loss": {"name": "pcpg", "baseline": "group"}}, "group: 1"),
        ({"loss": {"name": "reinforce"}, "estimator": {"name": "leave_one_out"}}, "group: 1"),
        ({"loss": {"name": "minimum_risk"}}, "group: 1"),
        ({"loss": {"name": "pcpg"}, "estimator": {"name": "whole"}}, "makes its own"),
        ({"loss": {"name": "dpo"}}, "recorded pairs"),
        ({"loss": {"name": "pcpg", "kernel": 0}}, "kernel: 0"),
        ({"loss": {"name": "pcpg", "kernel": 2, "stride": 3}}, "stride: 3"),
        ({"replaced": (0, 1.5)}, "outside"),
    ],
)
def test_impossible_methods_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Method(name="x", **fields)
