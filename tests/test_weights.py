"""Tensors by name: wrappers, ties, values, and claims of a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ivideogpt import CompressiveTokenizer, VideoTransformer, WorldModel
from ivideogpt.errors import CheckpointError
from ivideogpt.weights import built, plain_names, unshared

MakeWorldModel = Callable[..., WorldModel]


@pytest.fixture
def model(make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=3)


@pytest.fixture
def saved(model: WorldModel, tmp_path: Path) -> Path:
    return model.save_pretrained(tmp_path / "saved")


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda module: torch.compile(module),  # type: ignore[return-value]
    "parallel": nn.DataParallel,
    "both": lambda module: nn.DataParallel(torch.compile(module)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_saved_as_what_is_inside(
    model: WorldModel, saved: Path, tmp_path: Path, wrapper: str
) -> None:
    weights = WRAPPERS[wrapper](model.transformer).state_dict()
    assert any(name.startswith(("module.", "_orig_mod.")) for name in weights)
    save_file(unshared(weights), saved / "transformer.safetensors")  # as somebody else's code would
    assert_same_weights(WorldModel.from_pretrained(saved).transformer, model.transformer)
    assert plain_names(dict(weights)).keys() == model.transformer.state_dict().keys()


def test_saving_with_compiled_parts(model: WorldModel, tmp_path: Path) -> None:
    tokenizer, transformer = model.tokenizer, model.transformer
    model.tokenizer, model.transformer = torch.compile(tokenizer), torch.compile(transformer)  # type: ignore[assignment]
    again = WorldModel.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert_same_weights(again.tokenizer, tokenizer)
    assert_same_weights(again.transformer, transformer)


def test_parts_inside_may_be_compiled(model: WorldModel, tmp_path: Path) -> None:
    expected = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    model.transformer.layers[0] = torch.compile(model.transformer.layers[0])  # type: ignore[assignment]
    again = WorldModel.from_pretrained(model.save_pretrained(tmp_path / "m")).transformer.state_dict()
    assert again.keys() == expected.keys() and all(torch.equal(again[name], expected[name]) for name in expected)


def test_tied_weights_are_written_twice(model: WorldModel, tmp_path: Path) -> None:
    model.transformer.head.weight = model.transformer.embedding.weight
    again = WorldModel.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert_same_weights(again.transformer, model.transformer)


def test_a_part_of_a_larger_tensor_is_written_alone() -> None:
    whole = torch.arange(10.0)
    made = unshared({"whole": whole, "half": whole[5:], "column": whole.view(2, 5)[:, 1]})
    assert made["half"].tolist() == [5, 6, 7, 8, 9] and made["column"].tolist() == [1, 6]
    assert len({tensor.untyped_storage().data_ptr() for tensor in made.values()}) == 3
    assert made["half"].untyped_storage().nbytes() == made["half"].nbytes


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(CheckpointError, match="one name but for the prefixes"):
        plain_names({"a": torch.zeros(1), "module.a": torch.zeros(1)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor * torch.nan, r"tensors hold values that are not finite \(.*weight"),
        (lambda tensor: tensor.to(torch.int8), r"wrong kind \(.* is torch.int8, must be real"),
        (lambda tensor: tensor > 0, r"wrong kind \(.* is torch.bool, must be real"),
        (lambda tensor: tensor + torch.inf, "not finite"),
        (lambda tensor: tensor.double() + 1e200, "not finite"),
        (lambda tensor: (tensor * torch.nan).to(torch.float8_e5m2), "not finite"),
    ],
)
@pytest.mark.parametrize("part", ["tokenizer", "transformer"])
def test_weights_are_looked_at(saved: Path, part: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    file = saved / f"{part}.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=message):
        WorldModel.from_pretrained(saved)
    with pytest.raises(CheckpointError, match=message):
        (CompressiveTokenizer if part == "tokenizer" else VideoTransformer).from_pretrained(saved)


def test_weights_of_eight_bits_load(saved: Path) -> None:
    file = saved / "transformer.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}, file)
    weights = dict(VideoTransformer.from_pretrained(saved).named_parameters())
    assert all(weights[name].dtype == torch.float32 for name in load_file(file))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [("transformer", "hidden", 2**24), ("transformer", "feed_forward", 2**40), ("transformer", "layers", 900)],
)
def test_a_configuration_that_claims_a_giant_is_refused_before_it_is_built(
    saved: Path, part: str, field: str, value: Any
) -> None:
    config = json.loads((saved / "config.json").read_text())
    config[part][field] = value
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{part} of .* does not fit its configuration"):
        WorldModel.from_pretrained(saved)


def test_nothing_is_built_that_does_not_fit() -> None:
    made: list[torch.device] = []

    def make() -> nn.Module:
        made.append(torch.empty(0).device)
        return nn.Linear(2, 2)

    with pytest.raises(CheckpointError, match="here does not fit"):
        built(make, {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, where="here")
    assert [device.type for device in made] == ["meta"]
