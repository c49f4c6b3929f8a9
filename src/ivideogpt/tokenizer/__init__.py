"""Frames to tokens and back."""

from ivideogpt.tokenizer.compressive import CompressiveTokenizer, DecodedContext, EncodedContext, Reconstruction

__all__ = ["CompressiveTokenizer", "DecodedContext", "EncodedContext", "Reconstruction"]
