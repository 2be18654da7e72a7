"""The published models at the published shapes: a step forth and back, and a draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apps.lipreading.clips import Clips
from apps.lipreading.models import FastSettings, PaperSettings, StcnnSettings, build
from core.sequence.batch import TokenBatch
from simulators.lips.alphabet import EOS

CASES = [
    pytest.param(PaperSettings(), (29, 50, 100), 12, 80_284_510, id="paper-lrw"),
    pytest.param(PaperSettings(), (75, 50, 100), 32, 80_284_510, id="paper-grid", marks=pytest.mark.slow),
    pytest.param(PaperSettings(), (30, 112, 112), 20, 80_284_510, id="paper-lrw1000", marks=pytest.mark.slow),
    pytest.param(StcnnSettings(), (75, 64, 128), 32, 6_638_844, id="stcnn-grid"),
    pytest.param(FastSettings(front_end="frames"), (75, 50, 100), 32, 241_566, id="fast-grid"),
]


@pytest.mark.parametrize(("settings", "shape", "length", "parameters"), CASES)
def test_two_steps_of_training_and_a_draw(settings: Any, shape: tuple[int, ...], length: int, parameters: int) -> None:
    torch.manual_seed(0)
    model = build(settings)
    assert model.parameter_count == parameters
    clips = Clips(torch.rand(2, *shape), torch.tensor([shape[0], shape[0] - 1]))
    tokens = torch.randint(3, 30, (2, length + 1))
    tokens[:, -1] = EOS
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(2), clips)
    before = model.output.bias.detach().clone()  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(2):
        loss = -model.score(batch).log_prob.sum() / tokens.numel()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert bool(torch.isfinite(loss))
    assert not torch.equal(before, model.output.bias)  # type: ignore[arg-type]
    drawn = model.sample(clips, 1, length + 1, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.score(drawn).log_prob, drawn.log_prob_old, atol=1e-4, rtol=1e-4)
