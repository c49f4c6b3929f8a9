"""Small models whose weights hide nothing, and frames to feed them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from ivideogpt import CompressiveTokenizer, VideoTransformer, WorldModel
from ivideogpt.config import StateConfig, TokenizerConfig
from ivideogpt.presets import micro_16

MakeTokenizer = Callable[..., CompressiveTokenizer]
MakeTransformer = Callable[..., VideoTransformer]
MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def enliven(module: AnyModule, seed: int = 0) -> AnyModule:
    """Random weights of ordinary size everywhere, also where training starts from zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            if "embedding" in name or "position" in name:
                weight.copy_(noise / 2)
            elif weight.ndim > 1:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            else:
                weight.copy_(noise / 10 + ("norm" in name and name.endswith("weight")))
    return module.eval()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where world models of the tests are: cpu, or cuda")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where world models are."""
    chosen = torch.device(request.config.getoption("--device"))
    torch.backends.cudnn.allow_tf32 = False  # convolutions are as exact as on a CPU
    return chosen


@pytest.fixture
def make_frames(device: torch.device) -> MakeFrames:
    """Make (B,T,3,R,R) frames in [0,1], where the world models are."""

    def make(batch: int = 2, frames: int = 5, resolution: int = 16, seed: int = 0) -> Tensor:
        numbers = torch.Generator().manual_seed(seed)
        return torch.rand(batch, frames, 3, resolution, resolution, generator=numbers).to(device)

    return make


@pytest.fixture
def make_tokenizer() -> MakeTokenizer:
    """Make a `micro-16` tokenizer in eval mode; fields of its configuration change by keyword."""

    def make(seed: int = 0, **changes: Any) -> CompressiveTokenizer:
        return enliven(CompressiveTokenizer.from_preset("micro-16", **changes), seed)

    return make


@pytest.fixture
def make_transformer() -> MakeTransformer:
    """Make a `micro` transformer in eval mode; fields of its configuration change by keyword."""

    def make(seed: int = 1, **changes: Any) -> VideoTransformer:
        return enliven(VideoTransformer.from_preset("micro", **changes), seed)

    return make


@pytest.fixture
def make_world_model(
    make_tokenizer: MakeTokenizer, make_transformer: MakeTransformer, device: torch.device
) -> MakeWorldModel:
    """Make a world model of 16 pixels; `context_frames` and `state` are for both parts, others the transformer's."""

    def make(context_frames: int = 2, state: StateConfig | None = None, **changes: Any) -> WorldModel:
        config = TokenizerConfig(**{**dict(micro_16()), "context_frames": context_frames})
        tokenizer = make_tokenizer(context_frames=context_frames, state=state)
        return WorldModel(tokenizer, make_transformer(layout=config.layout, state=state, **changes)).to(device)

    return make
