"""Saved lip-reading models come back as they were, and what is no such model is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from apps.lipreading.clips import Clips
from apps.lipreading.models import FastSettings, PaperSettings, StcnnSettings, build, load_model, save_model
from core.errors import InputError

FAST = FastSettings(inputs=4, encoder=6, embedding=4, decoder=8)
PAPER = PaperSettings(channels=1, hidden=8, layers=2, embedding=4)
STCNN = StcnnSettings(channels=1, height=24, width=24, filters=(2, 3, 4), hidden=5)


def rewrite(path: Path, change: Any) -> None:
    """Write a file again with its record and tensors changed."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        record = json.loads(file.metadata()["lipreading"])
    change(record, tensors)
    safetensors.torch.save_file(tensors, path, {"lipreading": json.dumps(record)})


@pytest.mark.parametrize("settings", [FAST, PAPER, STCNN], ids=lambda s: s.name)
def test_a_model_comes_back(settings: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(settings).eval()
    basis = torch.randn(3, 4)
    path = tmp_path / "deep" / "model.safetensors"
    save_model(path, model, {"features": {"mean": 0.5}}, {"basis": basis})
    found = load_model(path)
    assert found.model.settings == settings
    assert not found.model.training
    assert found.extra == {"features": {"mean": 0.5}}
    assert torch.equal(found.tensors["basis"], basis)
    shape = (4,) if settings is FAST else (24, 24)
    clips = Clips(torch.rand(2, 9, *shape), torch.tensor([9, 6]))
    first, second = (m.sample(clips, 2, 8, generator=torch.Generator().manual_seed(3)) for m in (model, found.model))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.need("log_prob_old"), second.need("log_prob_old"))
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_loading_leaves_the_generator_of_the_process_alone(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", build(FAST))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_model(tmp_path / "m.safetensors")
    assert torch.equal(torch.rand(1), expected)


def test_another_alphabet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, build(FAST))
    rewrite(path, lambda record, _: record["alphabet"].__setitem__(5, "é"))
    with pytest.raises(InputError, match=r"m.safetensors: alphabet: symbol 5 is 'é'"):
        load_model(path)
    rewrite(path, lambda record, _: record["alphabet"].pop())
    with pytest.raises(InputError, match="29 symbols, not 30"):
        load_model(path)
    with pytest.raises(InputError, match="12 symbols"):
        save_model(path, build(FAST, vocabulary=12))


def test_files_that_are_damaged_or_something_else(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_model(path)
    save_model(path, build(FAST))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        load_model(path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="is no saved lip-reading model"):
        load_model(path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"lipreading": "{"})
    with pytest.raises(InputError, match="damaged"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record, _: record["model"].update(decoder=-1), "model.fast.decoder: "),
        (lambda record, _: record["model"].update(name="new"), "model: "),
        (lambda record, _: record["model"].update(colour=1), "model.fast.colour: "),
        (lambda record, _: record["model"].update(decoder=9), "size mismatch"),
        (lambda _, tensors: tensors.pop("output.bias"), "output.bias"),
        (lambda _, tensors: tensors["output.bias"].fill_(torch.nan), "output.bias: holds a number that is not finite"),
    ],
)
def test_records_and_weights_that_do_not_fit(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, build(FAST))
    rewrite(path, change)
    with pytest.raises(InputError, match=message) as found:
        load_model(path)
    assert "\n" not in str(found.value)
