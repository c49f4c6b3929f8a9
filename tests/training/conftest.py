"""Small episodes in which the actions matter, and settings for a few steps of training on them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ivideogpt import CompressiveTokenizer, hub
from ivideogpt.data.episode import Episode
from ivideogpt.data.sources.npz import write_episode
from ivideogpt.tokenizer.perceptual import LPIPS
from ivideogpt.training.config import TokenizerTrainingConfig, TransformerTrainingConfig

Make = Callable[..., Any]
Settings = Callable[..., Any]
MakeEpisodes = Callable[..., Path]


def moving_square(
    seed: int, length: int, size: int, rewards: bool = False, states: bool = False, **metadata: Any
) -> Episode:
    """A square on a coloured ground that moves by the actions; the reward is how far to the right it is.

    Its state is row, column, and the direction seen from the middle, an angle.
    """
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    side = size // 4
    frames = np.empty((length, size, size, 3), np.uint8)
    frames[:] = rng.integers(0, 120, 3)
    places = np.clip(size / 2 + np.cumsum(np.vstack([[0, 0], 2 * actions[:-1]]), axis=0), 0, size - side)
    for frame, (row, column) in zip(frames, places.round().astype(int), strict=True):
        frame[row : row + side, column : column + side] = (250, 200, 30)
    received = np.concatenate([[0], places[1:, 1]]).astype(np.float32)
    turn = np.arctan2(places[:, 0] - size / 2, places[:, 1] - size / 2)
    poses = np.concatenate([places, turn[:, None]], axis=1).astype(np.float32)
    return Episode(frames, actions, received if rewards else None, poses if states else None, metadata=metadata)


@pytest.fixture
def make_episodes(tmp_path: Path) -> MakeEpisodes:
    """Make a folder of episode files."""

    def make(name: str = "data", count: int = 4, length: int = 12, size: int = 16, seed: int = 0, **more: Any) -> Path:
        for number in range(count):
            episode = moving_square(seed + number, length, size, **more)
            write_episode(tmp_path / name / f"{number:03}.npz", episode)
        return tmp_path / name

    return make


SMALL = {
    "steps": 6,
    "batch_size": 2,
    "warmup": 2,
    "learning_rate": 3e-3,
    "log_every": 2,
    "validate_every": 6,
    "validation_batches": 1,
    "save_every": 3,
    "precision": "float32",
}


@pytest.fixture
def tokenizer_settings(tmp_path: Path, device: torch.device) -> Settings:
    """Make a configuration of a few steps on the folder `data`, into `run`; fields change by keyword."""

    def make(**changes: Any) -> TokenizerTrainingConfig:
        paths = {"data": tmp_path / "data", "out": tmp_path / "run", "device": str(device)}
        usual = {"preset": _preset("micro-16", changes), "horizon": 6, "future_frames": 2}
        return TokenizerTrainingConfig(**{**paths, **SMALL, **usual, **changes})

    return make


@pytest.fixture
def transformer_settings(tmp_path: Path, device: torch.device) -> Settings:
    """Make a configuration of a few steps on the tokens of `tokenizer`, into `run`; fields change by keyword."""

    def make(**changes: Any) -> TransformerTrainingConfig:
        paths = {"data": tmp_path / "data", "out": tmp_path / "run", "device": str(device)}
        paths["tokenizer"] = str(tmp_path / "tokenizer")
        usual = {"preset": _preset("micro", changes), "segment_frames": 5}
        return TransformerTrainingConfig(**{**paths, **SMALL, **usual, **changes})

    return make


def _preset(usual: str, changes: Mapping[str, object]) -> str | None:
    """The usual preset, except for who starts from a model."""
    return None if changes.get("start_from") else usual


@pytest.fixture
def tokenizer(make_tokenizer: Make, tmp_path: Path) -> CompressiveTokenizer:
    """A tokenizer, also saved where `transformer_settings` look for it."""
    made: CompressiveTokenizer = make_tokenizer()
    hub.save(tmp_path / "tokenizer", hub.Checkpoint(tokenizer=(made.config, dict(made.state_dict()))))
    return made


@pytest.fixture(scope="module")
def lpips_files() -> Iterator[dict[str, Any]]:
    """Random perceptual weights as the user would supply them; large, so not kept after the run."""
    torch.manual_seed(0)
    lpips = LPIPS()
    heads = {f"lin{i}.model.1.weight": head.weight.detach().abs() for i, head in enumerate(lpips.heads)}  # type: ignore[union-attr, operator]
    with tempfile.TemporaryDirectory() as folder:
        vgg16_file, heads_file = Path(folder) / "vgg16.safetensors", Path(folder) / "heads.safetensors"
        hub.write_tensors(vgg16_file, {f"features.{k}": v for k, v in lpips.features.state_dict().items()})
        hub.write_tensors(heads_file, heads)
        yield {"vgg16_weights": vgg16_file, "lpips_heads": heads_file}
