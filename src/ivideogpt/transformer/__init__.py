"""Tokens to more tokens."""

from ivideogpt.transformer.branches import BranchedCache, Prefixes
from ivideogpt.transformer.cache import KeyValueCache
from ivideogpt.transformer.model import TransformerOutput, VideoTransformer

__all__ = ["BranchedCache", "KeyValueCache", "Prefixes", "TransformerOutput", "VideoTransformer"]
