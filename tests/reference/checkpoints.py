"""Checkpoints in the official layout, made up from a seed: every tensor name and shape, and numbers to fill them.

The numbers come from numpy's raw bit stream, so they are the same everywhere and need not be stored.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Json = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, Tensor]

GROUPS = 32


def tokenizer_config(**changes: Any) -> Json:
    """The fields of an official tokenizer configuration."""
    config: Json = {
        "_class_name": "CompressiveVQModel",
        "act_fn": "silu",
        "block_out_channels": [32, 64],
        "context_length": 2,
        "latent_channels": 6,
        "layers_per_block": 1,
        "max_att_resolution": 8,
        "mid_block_add_attention": False,
        "norm_num_groups": GROUPS,
        "norm_type": "group",
        "num_dyn_embeddings": 24,
        "num_vq_embeddings": 40,
        "patch_size": 4,
        "resolution": 16,
        "vq_embed_dim": None,
    }
    assert not changes.keys() - config.keys()
    return config | changes


def transformer_config(tokenizer: Json, **changes: Any) -> Json:
    """The fields of an official transformer configuration, with the vocabulary of `tokenizer`."""
    config: Json = {
        "architectures": ["LlamaForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 24,
        "intermediate_size": 40,
        "max_position_embeddings": 1024,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "vocab_size": tokenizer["num_vq_embeddings"] + tokenizer["num_dyn_embeddings"] + 2,
    }
    assert not changes.keys() - config.keys()
    return config | changes


def made_up(shapes: Shapes, seed: int) -> Weights:
    """Numbers of ordinary size for every tensor, in the order of the names; nothing is left at zero or one."""
    bits = np.random.Philox(key=seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        uniform = _uniform(bits, shape)
        if "emb" in name:
            weights[name] = uniform
        elif len(shape) > 1:
            weights[name] = uniform * (3 / math.prod(shape[1:])) ** 0.5
        elif "norm" in name and name.endswith("weight"):
            weights[name] = 1 + uniform / 5
        else:
            weights[name] = uniform / 5
    return weights


def made_up_frames(shape: tuple[int, ...], seed: int) -> Tensor:
    """uint8 noise, 0..255."""
    return ((_uniform(np.random.Philox(key=seed), shape) + 1) * 128).to(torch.uint8)


def made_up_actions(shape: tuple[int, ...], seed: int) -> Tensor:
    """Actions, -1..1."""
    return _uniform(np.random.Philox(key=seed), shape)


def write_official(folder: Path, tokenizer: tuple[Json, Weights], transformer: tuple[Json, Weights]) -> None:
    """Write a folder in the official layout."""
    for name, file, (config, weights) in [
        ("tokenizer", "diffusion_pytorch_model", tokenizer),
        ("transformer", "model", transformer),
    ]:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(weights, folder / name / f"{file}.safetensors", {"format": "pt"})


def tokenizer_shapes(config: Json) -> Shapes:
    """Every tensor of an official tokenizer."""
    latent, patch = config["latent_channels"], config["patch_size"]
    shapes: Shapes = {
        "quantize.embedding.weight": (config["num_vq_embeddings"], latent),
        "dynamics_quantize.embedding.weight": (config["num_dyn_embeddings"], latent),
        **_layer("quant_conv", (latent, latent, 1, 1)),
        **_layer("post_quant_conv", (latent, latent, 1, 1)),
        **_layer("quant_linear", (latent, latent * patch**2)),
        **_layer("post_quant_linear", (latent * patch**2, latent)),
    }
    for prefix, cross in [("", False), ("cond_", True)]:
        attention = cross or config["mid_block_add_attention"]
        shapes |= _encoder(f"{prefix}encoder", config, cross, attention)
        shapes |= _decoder(f"{prefix}decoder", config, cross, attention)
    return shapes


def transformer_shapes(config: Json, action_dim: int | None, reward: bool) -> Shapes:
    """Every tensor of an official transformer."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes: Shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    if action_dim is None and not reward:
        return shapes
    shapes = {f"llm.{name}": shape for name, shape in shapes.items()}
    shapes |= {} if action_dim is None else _layer("action_linear", (hidden, action_dim))
    return shapes | (_layer("reward_linear", (1, hidden)) if reward else {})


def _uniform(bits: np.random.Philox, shape: tuple[int, ...]) -> Tensor:
    raw = bits.random_raw(math.prod(shape)) >> np.uint64(40)
    return torch.from_numpy(raw.astype(np.float32) / 2**23 - 1).reshape(shape)  # exact in float32


def _encoder(name: str, config: Json, cross: bool, attention: bool) -> Shapes:
    widths, size, crossed = config["block_out_channels"], config["resolution"], 0
    shapes = _layer(f"{name}.conv_in", (widths[0], 3, 3, 3))
    for i, width in enumerate(widths):
        block = f"{name}.down_blocks.{i}"
        for j in range(config["layers_per_block"]):
            shapes |= _residual(f"{block}.resnets.{j}", width if j else widths[max(i - 1, 0)], width)
        if i < len(widths) - 1:
            shapes |= _layer(f"{block}.downsamplers.0.conv", (width, width, 3, 3))
            size //= 2
        if cross and size <= config["max_att_resolution"]:
            shapes |= _cross(f"{name}.cross_att_blocks.{crossed}", width, size**2, config["context_length"])
            crossed += 1
    shapes |= _middle(f"{name}.mid_block", widths[-1], attention) | _norm(f"{name}.conv_norm_out", widths[-1])
    return shapes | _layer(f"{name}.conv_out", (config["latent_channels"], widths[-1], 3, 3))


def _decoder(name: str, config: Json, cross: bool, attention: bool) -> Shapes:
    widths, t = config["block_out_channels"][::-1], config["context_length"]
    size = config["resolution"] // 2 ** (len(widths) - 1)
    shapes = _layer(f"{name}.conv_in", (widths[0], config["latent_channels"], 3, 3))
    shapes |= _middle(f"{name}.mid_block", widths[0], attention)
    shapes |= _cross(f"{name}.cross_att_blocks.0", widths[0], size**2, t) if cross else {}
    for i, width in enumerate(widths):
        block = f"{name}.up_blocks.{i}"
        for j in range(config["layers_per_block"] + 1):
            shapes |= _residual(f"{block}.resnets.{j}", width if j else widths[max(i - 1, 0)], width)
        if i < len(widths) - 1:
            shapes |= _layer(f"{block}.upsamplers.0.conv", (width, width, 3, 3))
            size *= 2
        if cross and size <= config["max_att_resolution"]:
            shapes |= _cross(f"{name}.cross_att_blocks.{i + 1}", width, size**2, t)
    return shapes | _norm(f"{name}.conv_norm_out", widths[-1]) | _layer(f"{name}.conv_out", (3, widths[-1], 3, 3))


def _residual(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", inputs) | _layer(f"{name}.conv1", (outputs, inputs, 3, 3))
    shapes |= _norm(f"{name}.norm2", outputs) | _layer(f"{name}.conv2", (outputs, outputs, 3, 3))
    return shapes | (_layer(f"{name}.conv_shortcut", (outputs, inputs, 1, 1)) if inputs != outputs else {})


def _middle(name: str, width: int, attention: bool) -> Shapes:
    shapes = _residual(f"{name}.resnets.0", width, width) | _residual(f"{name}.resnets.1", width, width)
    if attention:
        shapes |= _norm(f"{name}.attentions.0.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= _layer(f"{name}.attentions.0.{part}", (width, width))
    return shapes


def _cross(name: str, width: int, positions: int, context_frames: int) -> Shapes:
    return {
        **_norm(f"{name}.q_norm", width),
        **_norm(f"{name}.kv_norm", width),
        f"{name}.q_pos_emb": (positions, width),
        f"{name}.kv_pos_emb": (context_frames * positions, width),
        f"{name}.att.in_proj_weight": (3 * width, width),
        f"{name}.att.in_proj_bias": (3 * width,),
        **_layer(f"{name}.att.out_proj", (width, width)),
    }


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _layer(name: str, weight: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
