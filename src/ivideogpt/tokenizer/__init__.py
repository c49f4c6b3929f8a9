"""Frames to tokens and back."""

from ivideogpt.tokenizer.compressive import CompressiveTokenizer
from ivideogpt.tokenizer.results import DecodedContext, EncodedContext, Reconstruction

__all__ = ["CompressiveTokenizer", "DecodedContext", "EncodedContext", "Reconstruction"]
