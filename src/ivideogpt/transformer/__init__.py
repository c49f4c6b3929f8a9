"""Tokens to more tokens."""

from ivideogpt.transformer.cache import KeyValueCache
from ivideogpt.transformer.model import TransformerOutput, VideoTransformer

__all__ = ["KeyValueCache", "TransformerOutput", "VideoTransformer"]
