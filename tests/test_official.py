"""The adapter to the official layout: exact names and values both ways, and refusal of what does not fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivideogpt import CompressiveTokenizer, WorldModel
from ivideogpt.config import SamplingConfig, StateConfig
from ivideogpt.errors import CheckpointError
from tests.reference.checkpoints import (
    made_up,
    tokenizer_config,
    tokenizer_shapes,
    transformer_config,
    transformer_shapes,
    write_official,
)

# What is assumed of them is tested in test_published.py.
pytestmark = pytest.mark.filterwarnings("ignore:model .* is in the official layout")

MakeTokenizer = Callable[..., CompressiveTokenizer]
Change = Callable[[Path], Any]

TOKENIZER_CONFIG, TOKENIZER_FILE = "tokenizer/config.json", "tokenizer/diffusion_pytorch_model.safetensors"
TRANSFORMER_CONFIG, TRANSFORMER_FILE = "transformer/config.json", "transformer/model.safetensors"


def make_official(folder: Path, action_dim: int | None = 4, reward: bool = True, **changes: Any) -> Path:
    """A folder as the published code writes it, made without ours."""
    config = tokenizer_config(**changes)
    llama = transformer_config(config)
    weights = made_up(tokenizer_shapes(config), seed=1)
    write_official(folder, (config, weights), (llama, made_up(transformer_shapes(llama, action_dim, reward), seed=2)))
    return folder


def expressible(make_tokenizer: MakeTokenizer, **changes: Any) -> CompressiveTokenizer:
    """A tokenizer of ours that the official layout can hold."""
    return make_tokenizer(**{"widths": (32, 32), "norm_groups": 32, "patch_size": 4, **changes})


@pytest.mark.parametrize(("action_dim", "reward"), [(None, False), (4, False), (4, True), (None, True)])
@pytest.mark.parametrize(
    "changes",
    [
        {"context_length": 1},
        {"context_length": 3, "mid_block_add_attention": True, "block_out_channels": [32, 64, 32], "patch_size": 2},
    ],
)
def test_there_and_back_is_the_same_to_the_last_bit(
    tmp_path: Path, action_dim: int | None, reward: bool, changes: dict[str, Any]
) -> None:
    theirs = make_official(tmp_path / "theirs", action_dim, reward, **changes)
    ours = WorldModel.from_pretrained(theirs).save_pretrained(tmp_path / "ours", layout="official")
    for file in (TOKENIZER_FILE, TRANSFORMER_FILE):
        expected, written = load_file(theirs / file), load_file(ours / file)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[name], expected[name]) for name in expected)
    for file in (TOKENIZER_CONFIG, TRANSFORMER_CONFIG):
        expected, written = (json.loads((folder / file).read_text()) for folder in (theirs, ours))
        assert {name: written[name] for name in expected} == expected


def test_plain_llama_names_without_actions(tmp_path: Path) -> None:
    model = WorldModel.from_pretrained(make_official(tmp_path / "theirs", None, False))
    model.save_pretrained(tmp_path / "ours", layout="official")
    names = set(load_file(tmp_path / "ours" / TRANSFORMER_FILE))
    assert {name.split(".")[0] for name in names} == {"model", "lm_head"}


def test_from_ours_to_official_and_back(make_tokenizer: MakeTokenizer, make_transformer: Any, tmp_path: Path) -> None:
    tokenizer = expressible(make_tokenizer, dropout=0.25)
    layout = dataclasses.replace(tokenizer.layout, goal=True)
    transformer = make_transformer(layout=layout, action_dim=2, reward=True, reward_symlog=True)
    model = WorldModel(tokenizer, transformer, SamplingConfig(temperature=0.5, top_k=7))
    again = WorldModel.from_pretrained(model.save_pretrained(tmp_path / "official", layout="official"))
    assert again.tokenizer.config == tokenizer.config
    assert again.transformer.config == transformer.config, "goal and symlog included"
    assert again.sampling == model.sampling
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_through_the_native_layout(tmp_path: Path) -> None:
    theirs = make_official(tmp_path / "theirs")
    WorldModel.from_pretrained(theirs).save_pretrained(tmp_path / "native")
    WorldModel.from_pretrained(tmp_path / "native").save_pretrained(tmp_path / "again", layout="official")
    expected, written = (load_file(folder / TOKENIZER_FILE) for folder in (theirs, tmp_path / "again"))
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_a_folder_with_the_tokenizer_alone(tmp_path: Path) -> None:
    folder = make_official(tmp_path / "theirs")
    for file in (TRANSFORMER_CONFIG, TRANSFORMER_FILE):
        (folder / file).unlink()
    assert CompressiveTokenizer.from_pretrained(folder).config.widths == (32, 64)
    with pytest.raises(CheckpointError, match="holds no transformer"):
        WorldModel.from_pretrained(folder)


def test_every_tensor_has_its_place(tmp_path: Path) -> None:
    """No two tensors swapped: each one of ours equals the official one that the name promises."""
    folder = make_official(tmp_path / "theirs")
    model, theirs = WorldModel.from_pretrained(folder), load_file(folder / TOKENIZER_FILE)
    ours = model.tokenizer.state_dict()
    for name, official in [
        ("context_encoder.conv_in.weight", "encoder.conv_in.weight"),
        ("prediction_decoder.middle.attention.output.weight", "cond_decoder.mid_block.attentions.0.to_out.0.weight"),
        ("prediction_encoder.cross.0.output.bias", "cond_encoder.cross_att_blocks.0.att.out_proj.bias"),
        ("prediction_decoder.cross.0.context_norm.weight", "cond_decoder.cross_att_blocks.0.kv_norm.weight"),
        ("prediction_encoder.blocks.0.resample.weight", "cond_encoder.down_blocks.0.downsamplers.0.conv.weight"),
        ("context_decoder.blocks.0.resample.bias", "decoder.up_blocks.0.upsamplers.0.conv.bias"),
        ("context_in.weight", "quant_conv.weight"),
        ("dynamics_out.weight", "post_quant_linear.weight"),
        ("dynamics_quantizer.embedding.weight", "dynamics_quantize.embedding.weight"),
    ]:
        assert torch.equal(ours[name], theirs[official]), name
    llama = load_file(folder / TRANSFORMER_FILE)
    packed = [llama[f"llm.model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(model.transformer.state_dict()["layers.1.attention.qkv.weight"], torch.cat(packed))


# What does not fit


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stem_stride": 2, "patch_size": 2}, "no place for stem_stride = 2"),
        ({"prediction_mid_attention": False}, "no place for prediction_mid_attention = False"),
        ({"attention_heads": 2}, r"no place for attention_heads = 2 \(only 4\)"),
        ({"norm_groups": 16}, r"no place for norm_groups = 16 \(only 32\)"),
        (
            {"quantizer": "fsq", "context_levels": (8, 4), "dynamics_levels": (8, 4)},
            "no place for quantizer = 'fsq'.*Save in the native layout",
        ),
    ],
)
def test_refuses_what_the_official_layout_cannot_hold(
    make_tokenizer: MakeTokenizer, make_transformer: Any, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    tokenizer = expressible(make_tokenizer, **changes)
    model = WorldModel(tokenizer, make_transformer(layout=tokenizer.layout))
    with pytest.raises(CheckpointError, match=complaint):
        model.save_pretrained(tmp_path / "official", layout="official")
    assert not list(tmp_path.iterdir()), "nothing half-written stays"


def test_refuses_a_place_embedding(make_tokenizer: MakeTokenizer, make_transformer: Any, tmp_path: Path) -> None:
    tokenizer = expressible(make_tokenizer)
    model = WorldModel(tokenizer, make_transformer(layout=tokenizer.layout, place_embedding=True))
    with pytest.raises(CheckpointError, match="no place for place_embedding = True"):
        model.save_pretrained(tmp_path / "official", layout="official")
    assert not list(tmp_path.iterdir()), "nothing half-written stays"
    model.save_pretrained(tmp_path / "native")


@pytest.mark.parametrize("part", ["tokenizer", "transformer"])
def test_refuses_states(make_tokenizer: MakeTokenizer, make_transformer: Any, tmp_path: Path, part: str) -> None:
    state = StateConfig(names=("x",), mean=(0.0,), std=(1.0,), change=(0.1,))
    known = {part: state}
    tokenizer = expressible(make_tokenizer, state=known.get("tokenizer"))
    model = WorldModel(tokenizer, make_transformer(layout=tokenizer.layout, state=known.get("transformer")))
    with pytest.raises(CheckpointError, match=r"no place for state = StateConfig\(.*'x'.*\(only None\)"):
        model.save_pretrained(tmp_path / "official", layout="official")
    assert not list(tmp_path.iterdir()), "nothing half-written stays"
    model.save_pretrained(tmp_path / "native")
    assert WorldModel.from_pretrained(tmp_path / "native").transformer.config.state == known.get("transformer")


def set_field(file: str, **changes: Any) -> Change:
    """Change fields of a configuration; `...` removes one."""

    def change(folder: Path) -> None:
        fields = json.loads((folder / file).read_text()) | changes
        plain = {name: value for name, value in fields.items() if value is not ...}
        (folder / file).write_text(json.dumps(plain))

    return change


def set_tensor(file: str, name: str, shape: tuple[int, ...] | None) -> Change:
    """Put zeros of `shape` in a tensor's place, or remove it."""

    def change(folder: Path) -> None:
        tensors: dict[str, Tensor] = load_file(folder / file)
        tensors.pop(name, None)
        save_file(tensors if shape is None else tensors | {name: torch.zeros(shape)}, folder / file)

    return change


BAD: dict[str, tuple[Change, str]] = {
    "lacking tokenizer field": (
        set_field(TOKENIZER_CONFIG, patch_size=...),
        "official tokenizer configuration lacks the field 'patch_size'",
    ),
    "lacking transformer field": (set_field(TRANSFORMER_CONFIG, hidden_size=...), "lacks the field 'hidden_size'"),
    "lacking width": (set_field(TOKENIZER_CONFIG, latent_channels=...), "lacks the field 'latent_channels'"),
    "illegal value": (
        set_field(TOKENIZER_CONFIG, resolution=18),
        "tokenizer/config.json is not a legal configuration: resolution is 18",
    ),
    "illegal type": (
        set_field(TOKENIZER_CONFIG, block_out_channels=None),
        "tokenizer/config.json is not a legal configuration",
    ),
    "other codebook width": (set_field(TOKENIZER_CONFIG, vq_embed_dim=5), "vq_embed_dim is 5; only 6 is supported"),
    "other groups": (set_field(TOKENIZER_CONFIG, norm_num_groups=16), "norm_num_groups is 16; only 32 is supported"),
    "other norm": (set_field(TOKENIZER_CONFIG, norm_type="spatial"), "norm_type is 'spatial'; only 'group'"),
    "other activation": (set_field(TRANSFORMER_CONFIG, hidden_act="gelu"), "hidden_act is 'gelu'; only 'silu'"),
    "grouped queries": (set_field(TRANSFORMER_CONFIG, num_key_value_heads=1), "num_key_value_heads is 1; only 3"),
    "stretched positions": (
        set_field(TRANSFORMER_CONFIG, rope_parameters={"rope_type": "yarn"}),
        "rope_type is 'yarn'; only 'default'",
    ),
    "old stretched positions": (
        set_field(TRANSFORMER_CONFIG, rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_scaling is .*; only None is supported",
    ),
    "other vocabulary": (
        set_field(TRANSFORMER_CONFIG, vocab_size=70),
        "vocab_size is 70, but the tokenizer beside it has 66 ids",
    ),
    "missing tensor": (
        set_tensor(TOKENIZER_FILE, "quant_conv.bias", None),
        r"does not fit its configuration: 1 missing \(context_in.bias\)",
    ),
    "extra tensor": (set_tensor(TOKENIZER_FILE, "encoder.more.weight", (2,)), "1 extra"),
    "wrong shape": (
        set_tensor(TOKENIZER_FILE, "quant_conv.bias", (7,)),
        r"context_in.bias is \(7,\), must be \(6,\)",
    ),
    "missing transformer tensor": (
        set_tensor(TRANSFORMER_FILE, "llm.model.layers.1.mlp.up_proj.weight", None),
        "lack the tensor 'model.layers.1.mlp.up_proj.weight'",
    ),
    "extra transformer tensor": (
        set_tensor(TRANSFORMER_FILE, "llm.model.layers.2.mlp.up_proj.weight", (40, 24)),
        "1 extra .*layers.2",
    ),
    "a query of another shape": (
        set_tensor(TRANSFORMER_FILE, "llm.model.layers.0.self_attn.q_proj.weight", (25, 24)),
        r"must have one shape here: model.layers.0.self_attn.q_proj.weight is \(25, 24\)",
    ),
    "a query of another width": (
        set_tensor(TRANSFORMER_FILE, "llm.model.layers.0.self_attn.q_proj.weight", (24, 23)),
        "must have one shape here",
    ),
    "a flat action input": (set_tensor(TRANSFORMER_FILE, "action_linear.weight", (24,)), "1 wrong shape"),
    "no weights": (lambda folder: (folder / TRANSFORMER_FILE).unlink(), "missing weight file .*model.safetensors"),
    "pickled weights": (
        lambda folder: (folder / TOKENIZER_FILE).rename(folder / "tokenizer/diffusion_pytorch_model.bin"),
        "Found diffusion_pytorch_model.bin: only safetensors",
    ),
    "truncated weights": (
        lambda folder: (folder / TOKENIZER_FILE).write_bytes((folder / TOKENIZER_FILE).read_bytes()[:-10]),
        "is not a whole safetensors file",
    ),
    "broken JSON": (
        lambda folder: (folder / TRANSFORMER_CONFIG).write_text("{"),
        "transformer/config.json cannot be read as JSON",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_refuses_a_bad_checkpoint(kind: str, tmp_path: Path) -> None:
    change, complaint = BAD[kind]
    folder = make_official(tmp_path / "theirs")
    change(folder)
    with pytest.raises(CheckpointError, match=complaint):
        WorldModel.from_pretrained(folder)


def test_query_key_and_value_that_fit_only_together(tmp_path: Path) -> None:
    """One row moved from the key to the query: the packed tensor would have the right shape and the wrong content."""
    folder = make_official(tmp_path / "theirs")
    set_tensor(TRANSFORMER_FILE, "llm.model.layers.0.self_attn.q_proj.weight", (25, 24))(folder)
    set_tensor(TRANSFORMER_FILE, "llm.model.layers.0.self_attn.k_proj.weight", (23, 24))(folder)
    with pytest.raises(CheckpointError, match="must have one shape here"):
        WorldModel.from_pretrained(folder)
