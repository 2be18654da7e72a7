"""Adam on stacked models: resuming, and models that do not touch each other."""

import pytest
import torch

from core.checkpoint import Checkpoint
from core.nn.adam import minimise


class Killed(Exception):
    pass


def start():
    drawn = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"weight": drawn.requires_grad_()}


def loss_of(parameters, killed_at=None):
    def loss(step):
        if step == killed_at:
            raise Killed
        target = torch.randn(4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return (parameters["weight"] - target).square().sum()

    return loss


def test_a_loop_killed_on_its_way_ends_at_the_bits_of_one_that_was_not(tmp_path):
    whole = start()
    minimise(whole, loss_of(whole), 20)
    cut = start()
    with pytest.raises(Killed):
        minimise(cut, loss_of(cut, killed_at=13), 20, checkpoint=Checkpoint(tmp_path / "adam.safetensors", 0.0))
    again, steps = start(), []
    minimise(
        again,
        lambda step: (steps.append(step), loss_of(again)(step))[1],
        20,
        checkpoint=Checkpoint(tmp_path / "adam.safetensors", 0.0),
    )
    assert steps == list(range(13, 20))
    assert torch.equal(again["weight"], whole["weight"])


def test_a_model_that_is_not_finite_spoils_no_other():
    sound, spoiled = start(), start()
    with torch.no_grad():
        spoiled["weight"][1] = torch.nan
    for parameters in (sound, spoiled):
        minimise(parameters, loss_of(parameters), 10)
    assert torch.equal(spoiled["weight"][[0, 2]], sound["weight"][[0, 2]])
    assert spoiled["weight"][1].isnan().all()
