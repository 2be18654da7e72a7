from __future__ import annotations

import pytest
import torch

from core.errors import InputError
from core.sequence.batch import TokenBatch, count_prompts
from core.sequence.minibatch import Part
from core.sequence.offline import ReferencedBatch
from tests.core.token_batches import ragged


@pytest.mark.parametrize(("prompts", "parts"), [(5, 4), (9, 4), (8, 4), (3, 5), (7, 1)])
def test_a_batch_is_dealt_into_as_many_parts_as_asked_for_and_no_prompt_is_parted(prompts: int, parts: int) -> None:
    batch = ragged(rows=2 * prompts, prompts=prompts).with_(context=torch.arange(prompts))
    found = [batch[rows] for rows in batch.deal(parts, torch.Generator().manual_seed(0))]
    seen = [part.context[part.group] for part in found]
    sizes = [len(torch.unique(x)) for x in seen]
    assert len(found) == min(parts, prompts)
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == prompts
    assert all(len(x) == 2 * size for x, size in zip(seen, sizes, strict=True))
    halves = Part.of(batch, None).minibatches(parts, torch.Generator().manual_seed(0))
    assert all(torch.equal(a.batch.tokens, b.tokens) for a, b in zip(halves, found, strict=True))


def test_what_one_part_alone_has_is_left_out_of_the_joined_batch_whichever_comes_first() -> None:
    plain = ragged(rows=4)
    fields = {name: getattr(plain, name) for name in TokenBatch.__dataclass_fields__}
    more = ReferencedBatch(**fields, logits_ref=torch.zeros(4, 7, 5))
    for parts in ((more, plain), (plain, more)):
        found = TokenBatch.joined(parts)
        assert len(found) == 8
        assert getattr(found, "logits_ref", None) is None
        assert len(found[:2]) == 2


def test_joined_batches_keep_prompts_of_their_own() -> None:
    parts = [ragged(rows=6).with_(context=torch.arange(3) + 10 * i) for i in range(3)]
    found = TokenBatch.joined(parts)
    assert torch.equal(found.context[found.group], torch.cat([part.context[part.group] for part in parts]))


def test_a_context_without_tensors_is_refused() -> None:
    with pytest.raises(InputError, match="NoneType holds no tensor"):
        count_prompts(None)
