"""The one adapter between the official research checkpoints and ours: configurations and tensor names, both ways.

Layout: `tokenizer/config.json` + `tokenizer/diffusion_pytorch_model.safetensors`, `transformer/config.json` +
`transformer/model.safetensors`. Tensors keep their values; query, key, value and gate, up are packed in ours.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from ivideogpt.config import DataFacts, TokenizerConfig, TransformerConfig
from ivideogpt.errors import CheckpointError
from ivideogpt.sequence import TokenLayout

TOKENIZER_FILE = "tokenizer/diffusion_pytorch_model.safetensors"
TOKENIZER_CONFIG = "tokenizer/config.json"
TRANSFORMER_FILE = "transformer/model.safetensors"
TRANSFORMER_CONFIG = "transformer/config.json"

Weights = dict[str, Tensor]
Json = dict[str, Any]


# (official, ours), dotted segments. DOWN_OR_UP stands for "down" in an encoder and "up" in a decoder.
_TOKENIZER_NAMES = [
    ("cond_encoder", "prediction_encoder"),
    ("cond_decoder", "prediction_decoder"),
    ("encoder", "context_encoder"),
    ("decoder", "context_decoder"),
    ("quantize", "context_quantizer"),
    ("dynamics_quantize", "dynamics_quantizer"),
    ("quant_conv", "context_in"),
    ("post_quant_conv", "context_out"),
    ("quant_linear", "dynamics_in"),
    ("post_quant_linear", "dynamics_out"),
    ("DOWN_OR_UP_blocks", "blocks"),
    ("resnets", "residual"),
    ("DOWN_OR_UPsamplers.0.conv", "resample"),
    ("conv_shortcut", "shortcut"),
    ("mid_block.residual.0", "middle.first"),
    ("mid_block.residual.1", "middle.second"),
    ("mid_block.attentions.0", "middle.attention"),
    ("group_norm", "norm"),
    ("to_q", "query"),
    ("to_k", "key"),
    ("to_v", "value"),
    ("conv_norm_out", "norm_out"),
    ("cross_att_blocks", "cross"),
    ("att.in_proj_weight", "projection.weight"),
    ("att.in_proj_bias", "projection.bias"),
    ("att.out_proj", "output"),
    ("kv_norm", "context_norm"),
    ("q_norm", "query_norm"),
    ("kv_pos_emb", "context_position"),
    ("q_pos_emb", "query_position"),
    ("middle.attention.to_out.0", "middle.attention.output"),  # after att.out_proj, so that the way back meets it first
]
_LAYER_NAMES = [
    ("input_layernorm.weight", "attention_norm.weight"),
    ("self_attn.o_proj.weight", "attention.output.weight"),
    ("post_attention_layernorm.weight", "feed_forward_norm.weight"),
    ("mlp.down_proj.weight", "feed_forward.down.weight"),
]
_PACKED_NAMES = [
    (("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"), "attention.qkv.weight"),
    (("mlp.gate_proj.weight", "mlp.up_proj.weight"), "feed_forward.gate_up.weight"),
]
_MODEL_NAMES = [
    ("model.embed_tokens.weight", "embedding.weight"),
    ("model.norm.weight", "norm.weight"),
    ("lm_head.weight", "head.weight"),
]
_EXTRA_NAMES = [("action_linear", "action_in"), ("reward_linear", "reward_head")]
# What the official computation fixes: (official field, only value), and (our field, only value).
_TOKENIZER_VARIANT = [("act_fn", "silu"), ("norm_type", "group"), ("norm_num_groups", 32)]
_TRANSFORMER_VARIANT = [
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("tie_word_embeddings", False),
    ("rope_scaling", None),
]
_PAPERS_DROPOUT = 0.1  # of the cross-attention; a constant of the official code, not a field
_EXPRESSIBLE = [
    ("quantizer", "vq"),
    ("stem_stride", 1),
    ("prediction_mid_attention", True),
    ("attention_heads", 4),
    ("norm_groups", 32),
    ("state", None),
]
_EXPRESSIBLE_TRANSFORMER = [("place_embedding", False), ("state", None)]


def tokenizer_from_official(config: Json, weights: Weights) -> tuple[TokenizerConfig, Weights]:
    """Official tokenizer configuration and tensors -> ours.

    Raises:
        CheckpointError: a field is missing, or the variant is one we do not know.
    """
    where = "official tokenizer configuration"
    _require_variant(config, [*_TOKENIZER_VARIANT, ("vq_embed_dim", config.get("latent_channels"))], where)
    ours = TokenizerConfig.checked(
        resolution=_field(config, "resolution", where),
        widths=tuple(_field(config, "block_out_channels", where)),
        layers=_field(config, "layers_per_block", where),
        latent_channels=_field(config, "latent_channels", where),
        attention_resolution=_field(config, "max_att_resolution", where),
        patch_size=_field(config, "patch_size", where),
        context_frames=_field(config, "context_length", where),
        context_mid_attention=_field(config, "mid_block_add_attention", where),
        dropout=config.get("dropout", _PAPERS_DROPOUT),
        context_codes=_field(config, "num_vq_embeddings", where),
        dynamics_codes=_field(config, "num_dyn_embeddings", where),
    )
    return ours, {_tokenizer_name(name, to_ours=True): tensor for name, tensor in weights.items()}


def tokenizer_to_official(config: TokenizerConfig, weights: Weights) -> tuple[Json, Weights]:
    """Our tokenizer configuration and tensors -> official.

    Raises:
        CheckpointError: the official layout cannot express this tokenizer.
    """
    _require_expressible(config, _EXPRESSIBLE)
    levels = len(config.widths)
    official = {
        "_class_name": "CompressiveVQModel",
        "act_fn": "silu",
        "block_out_channels": list(config.widths),
        "context_length": config.context_frames,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers,
        "lookup_from_codebook": True,
        "max_att_resolution": config.attention_resolution,
        "mid_block_add_attention": config.context_mid_attention,
        "norm_num_groups": config.norm_groups,
        "norm_type": "group",
        "num_dyn_embeddings": config.dynamics_codes,
        "num_vq_embeddings": config.context_codes,
        "out_channels": 3,
        "patch_size": config.patch_size,
        "resolution": config.resolution,
        "sample_size": 32,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "vq_embed_dim": None,
    }
    # A field of ours, which the official code does not read.
    official |= {"dropout": config.dropout} if config.dropout != _PAPERS_DROPOUT else {}
    return official, {_tokenizer_name(name, to_ours=False): tensor for name, tensor in weights.items()}


def transformer_from_official(config: Json, weights: Weights, layout: TokenLayout) -> tuple[TransformerConfig, Weights]:
    """Official transformer configuration and tensors -> ours, on the tokenizer's `layout`.

    Raises:
        CheckpointError: a field or tensor is missing, or the vocabulary is not the tokenizer's.
    """
    where = "official transformer configuration"
    if _field(config, "vocab_size", where) != layout.vocabulary:
        raise CheckpointError(
            f"{where}: vocab_size is {config['vocab_size']}, but the tokenizer beside it has {layout.vocabulary} ids."
        )
    heads = _field(config, "num_attention_heads", where)
    _require_variant(config, [*_TRANSFORMER_VARIANT, ("num_key_value_heads", heads)], where)
    action = weights.get("action_linear.weight")
    rope = config.get("rope_parameters") or {}
    _require_variant(rope, [("rope_type", "default")], where)
    ours = TransformerConfig.checked(
        layers=_field(config, "num_hidden_layers", where),
        heads=heads,
        hidden=_field(config, "hidden_size", where),
        feed_forward=_field(config, "intermediate_size", where),
        layout=dataclasses.replace(layout, goal=config.get("goal", False)),
        max_positions=config.get("max_position_embeddings", 1024),
        rope_base=rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        attention_dropout=config.get("attention_dropout", 0.0),
        action_dim=None if action is None else action.shape[-1],
        reward="reward_linear.weight" in weights,
        reward_symlog=config.get("reward_symlog", False),
        trained_frames=config.get("trained_frames"),
        action_limit=config.get("action_limit"),
        data=DataFacts.checked(**config.get("data", {})),
    )
    official = {name.removeprefix("llm."): tensor for name, tensor in weights.items()}
    return ours, _transformer_weights_from_official(official, ours.layers)


def transformer_to_official(config: TransformerConfig, weights: Weights) -> tuple[Json, Weights]:
    """Our transformer configuration and tensors -> official.

    Raises:
        CheckpointError: the official layout cannot express this transformer.
    """
    _require_expressible(config, _EXPRESSIBLE_TRANSFORMER)
    official = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": config.attention_dropout,
        # Said outright, or the reader's defaults would make ordinary tokens end the sequence.
        "bos_token_id": None,
        "eos_token_id": None,
        "head_dim": config.hidden // config.heads,
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "intermediate_size": config.feed_forward,
        "max_position_embeddings": config.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.heads,
        "pad_token_id": None,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"},
        "rope_theta": config.rope_base,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.layout.vocabulary,
    }
    # Fields of ours, which the official code does not read.
    ours = {
        "goal": config.layout.goal,
        "reward_symlog": config.reward_symlog,
        "trained_frames": config.trained_frames,
        "action_limit": config.action_limit,
        "data": config.data.model_dump(mode="json", exclude_defaults=True),
    }
    official |= {name: value for name, value in ours.items() if value or name == "goal"}
    plain = _transformer_weights_to_official(_plain_rewards(config, weights), config.layers)
    if config.action_dim is None and not config.reward:
        return official, plain
    heads = {official for official, _ in _EXTRA_NAMES}
    return official, {k if k.split(".")[0] in heads else f"llm.{k}": v for k, v in plain.items()}


def _tokenizer_name(name: str, *, to_ours: bool) -> str:
    side = "down" if "encoder" in name else "up"
    pairs = [(official.replace("DOWN_OR_UP", side), ours) for official, ours in _TOKENIZER_NAMES]
    # Later pairs are written in terms of what earlier ones made, so the way back runs in reverse.
    if not to_ours:
        pairs = [(ours, official) for official, ours in reversed(pairs)]
    if to_ours and re.match(r"(encoder|decoder|cond_encoder|cond_decoder)\.", name) is None:
        return _swap_first(name, pairs)
    for old, new in pairs:
        name = re.sub(rf"(?<![\w.]){re.escape(old)}(?=\.|$)|(?<=\.){re.escape(old)}(?=\.|$)", new, name, count=1)
    return name


def _swap_first(name: str, pairs: list[tuple[str, str]]) -> str:
    head, _, rest = name.partition(".")
    return f"{dict(pairs).get(head, head)}.{rest}"


def _transformer_weights_from_official(official: Weights, layers: int) -> Weights:
    official = dict(official)
    ours = {new: _take(official, old) for old, new in _MODEL_NAMES}
    for i in range(layers):
        for old, new in _LAYER_NAMES:
            ours[f"layers.{i}.{new}"] = _take(official, f"model.layers.{i}.{old}")
        for parts, new in _PACKED_NAMES:
            ours[f"layers.{i}.{new}"] = _packed(official, [f"model.layers.{i}.{part}" for part in parts])
    for old, new in _EXTRA_NAMES:
        for name in [name for name in official if name.startswith(f"{old}.")]:
            ours[name.replace(old, new, 1)] = official.pop(name)
    return {**ours, **official}  # what is left over is reported as extra tensors when the weights are loaded


def _transformer_weights_to_official(ours: Weights, layers: int) -> Weights:
    official = {old: ours[new] for old, new in _MODEL_NAMES}
    for i in range(layers):
        for old, new in _LAYER_NAMES:
            official[f"model.layers.{i}.{old}"] = ours[f"layers.{i}.{new}"]
        for parts, new in _PACKED_NAMES:
            chunks = ours[f"layers.{i}.{new}"].chunk(len(parts))
            official |= {f"model.layers.{i}.{part}": chunk.clone() for part, chunk in zip(parts, chunks, strict=True)}
    for old, new in _EXTRA_NAMES:
        official |= {name.replace(new, old, 1): ours[name] for name in ours if name.startswith(f"{new}.")}
    return official


def _plain_rewards(config: TransformerConfig, weights: Weights) -> Weights:
    """Weights whose reward head gives rewards without `reward_mean` and `reward_std`, for which there is no place."""
    if not config.reward:
        return weights
    weight, bias = weights["reward_head.weight"], weights["reward_head.bias"]
    plain = {
        "reward_head.weight": config.reward_std * weight,
        "reward_head.bias": config.reward_mean + config.reward_std * bias,
    }
    return {**weights, **plain}


def _take(weights: Weights, name: str) -> Tensor:
    if name not in weights:
        raise CheckpointError(f"official transformer weights lack the tensor {name!r}. Is the file complete?")
    return weights.pop(name)


def _packed(weights: Weights, names: list[str]) -> Tensor:
    parts = [_take(weights, name) for name in names]
    if len({part.shape for part in parts}) > 1:
        shapes = "; ".join(f"{name} is {tuple(part.shape)}" for name, part in zip(names, parts, strict=True))
        raise CheckpointError(f"official transformer weights must have one shape here: {shapes}. Is the file damaged?")
    return torch.cat(parts)


def _require_expressible(config: TokenizerConfig | TransformerConfig, fields: list[tuple[str, Any]]) -> None:
    for name, needed in fields:
        if getattr(config, name) != needed:
            raise CheckpointError(
                f"the official layout has no place for {name} = {getattr(config, name)!r} (only {needed!r}). "
                "Save in the native layout."
            )


def _require_variant(config: Json, fields: list[tuple[str, Any]], where: str) -> None:
    for name, needed in fields:
        if config.get(name) not in (None, needed):
            raise CheckpointError(f"{where}: {name} is {config[name]!r}; only {needed!r} is supported.")


def _field(config: Json, name: str, where: str) -> Any:
    if name not in config:
        raise CheckpointError(f"{where} lacks the field {name!r}. Is this folder an iVideoGPT checkpoint?")
    return config[name]
