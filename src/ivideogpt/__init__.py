"""An interactive world model: video becomes tokens, and a transformer continues them one action at a time.

The public names below are loaded when first asked for, so that `import ivideogpt` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivideogpt.inference import InferenceModel
    from ivideogpt.sequence import TokenLayout
    from ivideogpt.session import Session
    from ivideogpt.tokenizer import CompressiveTokenizer
    from ivideogpt.transformer import VideoTransformer
    from ivideogpt.world_model import WorldModel

__version__ = "0.1.0"

__all__ = [
    "CompressiveTokenizer",
    "InferenceModel",
    "Session",
    "TokenLayout",
    "VideoTransformer",
    "WorldModel",
    "__version__",
]

_MODULES = {
    "CompressiveTokenizer": "ivideogpt.tokenizer",
    "InferenceModel": "ivideogpt.inference",
    "Session": "ivideogpt.session",
    "TokenLayout": "ivideogpt.sequence",
    "VideoTransformer": "ivideogpt.transformer",
    "WorldModel": "ivideogpt.world_model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
