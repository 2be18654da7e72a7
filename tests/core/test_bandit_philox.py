import numpy as np
import pytest
import torch
from scipy import stats

from core import bandits
from core.errors import InputError

WORD = 2**32


def reference(counter, key):
    """Philox4x32-10 of one counter in Python's integers, written from the paper's figure."""
    x, k = list(counter), list(key)
    for _ in range(10):
        low, high = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [high // WORD ^ x[1] ^ k[0], high % WORD, low // WORD ^ x[3] ^ k[1], low % WORD]
        k = [(k[0] + 0x9E3779B9) % WORD, (k[1] + 0xBB67AE85) % WORD]
    return x


def words(*shape, seed=0):
    return torch.randint(WORD, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of Random123
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, expected):
    counter, key, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    assert reference(counter, key) == expected
    assert bandits.philox4x32(torch.tensor([counter]), torch.tensor(key))[0].tolist() == expected


def test_every_row_is_the_scalar_reference():
    counter, key = words(500, 4), words(500, 2, seed=1)
    counter[0], key[0] = WORD - 1, WORD - 1
    expected = [reference(*row) for row in zip(counter.tolist(), key.tolist(), strict=True)]
    assert bandits.philox4x32(counter, key).tolist() == expected
    common = bandits.philox4x32(counter, key[3])
    assert common.tolist() == bandits.philox4x32(counter, key[3].expand(500, 2)).tolist()


def test_a_row_draws_the_same_in_any_company():
    counter, key = words(300, 4), words(300, 2, seed=1)
    together = bandits.philox_uniform(key, counter)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    assert torch.equal(bandits.philox_uniform(key[order], counter[order]), together[order])
    assert torch.equal(bandits.philox_uniform(key[7:8], counter[7:8]), together[7:8])
    assert bandits.philox_uniform(key[:0], counter[:0]).shape == (0,)


def test_uniforms_are_the_first_53_bits():
    counter, key = words(200, 4), words(200, 2, seed=1)
    drawn = bandits.philox4x32(counter, key).tolist()
    expected = [((high * WORD + low) >> 11) / 2**53 for low, high, _, _ in drawn]
    assert bandits.philox_uniform(key, counter).tolist() == expected


def test_uniforms_of_consecutive_counters_and_keys_are_uniform_and_uncorrelated():
    counter = torch.zeros(20_000, 4, dtype=torch.int64)
    counter[:, 0] = torch.arange(20_000)
    by_counter = bandits.philox_uniform(torch.tensor([5, 0]), counter).numpy()
    by_key = bandits.philox_uniform(counter[:, :2], counter[:1].expand(20_000, 4)).numpy()
    for u in (by_counter, by_key):
        assert u.min() >= 0
        assert u.max() < 1
        assert stats.kstest(u, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(by_counter, by_key)[0, 1]) < 4 / np.sqrt(20_000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bandits.philox4x32(words(5, 3), words(2)), r"counter of shape \(5, 3\)"),
        (lambda: bandits.philox4x32(words(5, 4), words(4, 2)), r"key of shape \(4, 2\)"),
        (lambda: bandits.philox4x32(words(5, 4) + WORD, words(2)), "counter of torch.int64"),
        (lambda: bandits.philox4x32(words(5, 4), -1 - words(2)), "key of torch.int64"),
        (lambda: bandits.philox4x32(words(5, 4).int(), words(2)), "counter of torch.int32"),
    ],
)
def test_refusals_name_what_is_wrong_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_draws_the_very_same_numbers():
    counter, key = words(100_000, 4), words(100_000, 2, seed=1)
    assert torch.equal(bandits.philox_uniform(key.cuda(), counter.cuda()).cpu(), bandits.philox_uniform(key, counter))
