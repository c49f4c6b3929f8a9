"""Reading clips: a store against the official pattern, which unpacks an episode's file for each clip; and converting.

Shapes: T frames, H and W pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ivideogpt.benchmarks.timing import Case
from ivideogpt.data.convert import Plan, begin, convert
from ivideogpt.data.episode import Episode
from ivideogpt.data.loader import SegmentLoader
from ivideogpt.data.segment import SegmentSpec
from ivideogpt.data.sources.npz import write_episode
from ivideogpt.data.store import Store, write_manifest

_SPEC = SegmentSpec(length=16, context_frames=2)
_RESOLUTION = 64
_CLIPS = 8  # in a run
_NO_CACHE = 0  # data sets that matter do not fit into memory


def data_cases(sizes: tuple[tuple[int, int], ...], episodes: int, length: int) -> Iterator[Case]:
    """Clips of 16 frames at 64 pixels from episodes of each size (H, W), and the conversion of these.

    Args:
        sizes: of the recorded frames.
        episodes: how many are recorded of each size.
        length: frames T of an episode.
    """
    for height, width in sizes:
        with tempfile.TemporaryDirectory() as name:
            yield from _cases(Path(name), height, width, episodes, length)


def _cases(folder: Path, height: int, width: int, episodes: int, length: int) -> Iterator[Case]:
    data, store = folder / "data", folder / "store"
    for number in range(episodes):
        actions = np.zeros((length, 7), np.float32)
        write_episode(data / f"{number:06d}.npz", Episode(frames=_film(number, length, height, width), actions=actions))
    plan = Plan(source=str(data), format="npz", recordings=episodes, shard_episodes=episodes)
    begin(store, plan)
    list(convert(store, plan))
    write_manifest(store)
    loader = SegmentLoader(Store(store), range(episodes), _SPEC, _RESOLUTION, 1, seed=0, cache_mb=_NO_CACHE)
    steps = iter(range(10**9))
    yield Case(
        name=f"clips {height}x{width}",
        work=f"{_CLIPS} clips of 16 frames at {_RESOLUTION} px from {episodes} episodes of {length} frames",
        variants={
            "official pattern": lambda: [_official_clip(data, next(steps)) for _ in range(_CLIPS)],
            "store": lambda: [loader.batch_at(next(steps)) for _ in range(_CLIPS)],
        },
        ratios={"clips a second": ("official pattern", "store")},
        facts={"clips": _CLIPS, "store_bytes": sum(path.stat().st_size for path in (store / "shards").iterdir())},
    )
    yield Case(
        name=f"convert {height}x{width}",
        work=f"{episodes} episodes of {length} frames, jpeg",
        variants={"convert, one process": lambda: _converted(plan)},
        facts={"episodes": episodes},
    )


def _converted(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as name:
        begin(Path(name), plan)
        list(convert(Path(name), plan))


def _official_clip(data: Path, seed: int) -> torch.Tensor:
    """As the official loader: unpack the whole file, then resize frame by frame with PIL."""
    rng = np.random.default_rng(seed)
    files = sorted(data.iterdir())
    with np.load(files[rng.integers(len(files))], allow_pickle=False) as archive:
        images, _ = archive["image"], archive["action"]
    start = int(rng.integers(len(images) - _SPEC.length + 1))
    frames = []
    for image in images[start : start + _SPEC.length]:
        picture = Image.fromarray(image)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        if side != _RESOLUTION:
            square = square.resize((_RESOLUTION, _RESOLUTION), Image.Resampling.BILINEAR)
        frames.append(torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1))
    return torch.stack(frames)


def _film(seed: int, length: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A textured ground with noise, over which a disc moves: about as hard to pack as a camera's pictures."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = sum(
        np.sin(2 * np.pi * (rng.uniform(-4, 4) * x / width + rng.uniform(-4, 4) * y / height) + rng.uniform(0, 6))
        for _ in range(6)
    )
    ground = 120 + 20 * np.asarray(waves)[..., None] * rng.uniform(0.5, 1, 3)
    frames = np.empty((length, height, width, 3), np.uint8)
    for j in range(length):
        noisy = ground + rng.normal(0, 2, ground.shape)
        row, column = height * (0.5 + 0.3 * np.sin(j / 9)), width * (0.5 + 0.3 * np.cos(j / 7))
        noisy[(y - row) ** 2 + (x - column) ** 2 < (height / 8) ** 2] = (220, 60, 40)
        frames[j] = noisy.clip(0, 255)
    return frames
