"""Named model configurations. Each preset is a function that returns a full configuration."""

from __future__ import annotations

from collections.abc import Callable

from ivideogpt.config import TokenizerConfig, TransformerConfig
from ivideogpt.errors import ConfigError, unknown_name
from ivideogpt.sequence import TokenLayout


def oxe_64() -> TokenizerConfig:
    """The paper's tokenizer for 64 pixels: 114 M parameters, 256 + 16 tokens."""
    return TokenizerConfig()


def oxe_256() -> TokenizerConfig:
    """The paper's tokenizer for 256 pixels: 310 M parameters, 256 + 16 tokens."""
    return TokenizerConfig(resolution=256, widths=(128, 256, 256, 512, 768), attention_resolution=32)


def nano_64() -> TokenizerConfig:
    """A tokenizer that two CPU cores can train: 64 pixels, 64 + 16 tokens, finite scalar quantization."""
    return TokenizerConfig(
        stem_stride=2,
        widths=(32, 64, 96),
        layers=1,
        latent_channels=32,
        patch_size=2,
        norm_groups=8,
        dropout=0.0,
        quantizer="fsq",
        context_codes=1024,
        dynamics_codes=4096,
        context_levels=(4,) * 5,
        dynamics_levels=(4,) * 6,
    )


def micro_16() -> TokenizerConfig:
    """The smallest tokenizer with every part of the large ones, for tests: 16 pixels, 16 + 4 tokens."""
    return TokenizerConfig(
        resolution=16,
        widths=(8, 8, 16),
        layers=1,
        latent_channels=8,
        patch_size=2,
        norm_groups=4,
        attention_resolution=8,
        context_codes=32,
        dynamics_codes=32,
    )


def small() -> TransformerConfig:
    """The paper's transformer: 138 M parameters."""
    return TransformerConfig()


def medium() -> TransformerConfig:
    """The paper's larger transformer: 436 M parameters."""
    return TransformerConfig(layers=24, heads=16, hidden=1024, feed_forward=4096)


def nano() -> TransformerConfig:
    """A transformer that two CPU cores can train, on the tokens of `nano-64`."""
    return TransformerConfig(
        layers=6,
        heads=4,
        hidden=256,
        feed_forward=768,
        layout=nano_64().layout,
        place_embedding=True,
        attention_dropout=0.0,
    )


def micro() -> TransformerConfig:
    """The smallest transformer, on the tokens of `micro-16`, for tests."""
    return TransformerConfig(layers=2, heads=2, hidden=16, feed_forward=32, layout=micro_16().layout)


TOKENIZERS: dict[str, Callable[[], TokenizerConfig]] = {
    "oxe-64": oxe_64,
    "oxe-256": oxe_256,
    "nano-64": nano_64,
    "micro-16": micro_16,
}
TRANSFORMERS: dict[str, Callable[[], TransformerConfig]] = {
    "small": small,
    "medium": medium,
    "nano": nano,
    "micro": micro,
}


PAPERS = ("oxe-64", "oxe-256", "small", "medium")
"""Presets that are the paper's models; the others are for small machines and tests."""


def tokenizer_preset(name: str) -> TokenizerConfig:
    """The tokenizer configuration called `name`.

    Raises:
        ConfigError: unknown name.
    """
    if name not in TOKENIZERS:
        raise ConfigError(unknown_name("tokenizer preset", name, TOKENIZERS))
    return TOKENIZERS[name]()


def transformer_preset(name: str, layout: TokenLayout | None = None) -> TransformerConfig:
    """The transformer configuration called `name`, on another token layout where one is given.

    Raises:
        ConfigError: unknown name, or a layout that is too long for it.
    """
    if name not in TRANSFORMERS:
        raise ConfigError(unknown_name("transformer preset", name, TRANSFORMERS))
    config = TRANSFORMERS[name]()
    if layout is None:
        return config
    return TransformerConfig.checked(**{**dict(config), "layout": layout})
