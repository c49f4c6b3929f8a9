"""Sources of contexts: what they draw, where it comes from, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ivideogpt import WorldModel
from ivideogpt.config import DataFacts
from ivideogpt.data.convert import Plan, begin, convert
from ivideogpt.data.episode import Episode
from ivideogpt.data.sources.npz import write_episode
from ivideogpt.envs.imagined_contexts import (
    ContextSource,
    EpisodeFolder,
    GivenContexts,
    PushTOpenings,
    draw_contexts,
    open_contexts,
)
from ivideogpt.envs.imagined_single import ImaginedEnv
from ivideogpt.envs.record import TRAINING_SEEDS, pusht_episode
from ivideogpt.errors import ConfigError, EpisodeError, ShapeError
from ivideogpt.sequence import TokenLayout

MakeWorldModel = Callable[..., WorldModel]

LAYOUT = TokenLayout(context_frames=2)
SHAPE = (2, 16, 16, 3)
FRAMES = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)


def draws(source: ContextSource, count: int = 20, seed: int = 0) -> list[tuple[np.ndarray, str]]:
    rng = np.random.default_rng(seed)
    return [source.draw(rng) for _ in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two episodes of 24x32 frames, whose every frame is one grey: ten times the episode, plus the frame."""
    for number, length in enumerate((4, 9)):
        greys = (10 * number + np.arange(length)).astype(np.uint8)
        frames = np.broadcast_to(greys[:, None, None, None], (length, 24, 32, 3)).copy()
        write_episode(tmp_path / f"{number:06d}.npz", Episode(frames))
    return tmp_path


def test_pusht_openings_are_the_first_frames_of_episodes() -> None:
    source = open_contexts("pusht", LAYOUT, 64)
    frames, origin = source.draw(np.random.default_rng(0))
    found = re.fullmatch(r"pusht:(\d+)@0", origin)
    assert found is not None
    seed = int(found[1])
    assert seed in TRAINING_SEEDS
    np.testing.assert_array_equal(frames, pusht_episode(seed, 2).frames)
    assert PushTOpenings(1, 16).draw(np.random.default_rng(0))[0].shape == (1, 16, 16, 3)


def test_pusht_openings_of_chosen_seeds() -> None:
    origins = {origin for _, origin in draws(PushTOpenings(1, 16, seeds=range(900_000, 900_002)))}
    assert origins == {"pusht:900000@0", "pusht:900001@0"}
    for seeds in (range(0), range(99_990, 100_010), range(200_000, 200_001), range(-5, 5)):
        with pytest.raises(ConfigError, match=r"training.*evaluation"):
            PushTOpenings(1, 16, seeds=seeds)


@pytest.mark.parametrize("step_size", [1, 3])
def test_a_folder_of_episodes(folder: Path, step_size: int) -> None:
    origins = set()
    for frames, origin in draws(EpisodeFolder(folder, 2, 16, step_size), count=60):
        path, _, start = origin.rpartition("@")
        first = 10 * int(Path(path).stem) + int(start)
        assert frames.shape == SHAPE
        assert [int(frame.mean()) for frame in frames] == [first, first + step_size]
        origins.add((Path(path).name, int(start)))
    last = {name: max(start for other, start in origins if other == name) for name, _ in origins}
    assert last == {"000000.npz": 3 - step_size, "000001.npz": 8 - step_size}
    assert isinstance(open_contexts(str(folder), LAYOUT, 16), EpisodeFolder)


def test_a_store_of_episodes(folder: Path, tmp_path: Path) -> None:
    """The same contexts as from the files, under the store's own names."""
    plan = Plan(source=str(folder), format="npz", recordings=2, encoding="png")
    begin(tmp_path / "store", plan)
    list(convert(tmp_path / "store", plan))
    pairs = zip(draws(EpisodeFolder(tmp_path / "store", 2, 16)), draws(EpisodeFolder(folder, 2, 16)), strict=True)
    for (frames, origin), (expected, file) in pairs:
        np.testing.assert_array_equal(frames, expected)
        assert origin == f"{tmp_path / 'store'}#{Path(file).name.replace('.npz', '')}"
    assert isinstance(open_contexts(tmp_path / "store", LAYOUT, 16), EpisodeFolder)


def test_sources_follow_what_the_model_knows(folder: Path) -> None:
    facts = DataFacts(step_size=3, camera_key="front")
    frames, origin = open_contexts("pusht", LAYOUT, 64, facts).draw(np.random.default_rng(0))
    seed = int(origin.removeprefix("pusht:").removesuffix("@0"))
    np.testing.assert_array_equal(frames, pusht_episode(seed, 4).frames[[0, 3]])
    source = open_contexts(folder, LAYOUT, 16, facts)
    assert isinstance(source, EpisodeFolder)
    assert (source.step_size, source.episodes.camera_key) == (3, "front")
    for other in (EpisodeFolder(folder, 2, 16, step_size=2), PushTOpenings(2, 16)):
        with pytest.raises(ConfigError, match="but this model was trained with step size 3"):
            open_contexts(other, LAYOUT, 16, facts)
        assert open_contexts(other, LAYOUT, 16, DataFacts()) is other, "nothing is known"
        assert open_contexts(other, TokenLayout(context_frames=1), 16, facts) is other, "no steps in a context"


def test_faults_of_a_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=re.escape("000000.npz: 4 frames are too few for 5 context frames")):
        draws(EpisodeFolder(folder, 5, 16))
    with pytest.raises(ConfigError, match="step_size is 0"):
        EpisodeFolder(folder, 2, 16, step_size=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpisodeError, match="no episode file"):
        open_contexts(tmp_path / "empty", LAYOUT, 16)


@pytest.mark.parametrize(
    "given",
    [
        FRAMES,
        FRAMES.transpose(0, 1, 4, 2, 3),
        FRAMES.astype(np.float32) / 255,
        torch.from_numpy(FRAMES),
        torch.from_numpy(FRAMES).permute(0, 1, 4, 2, 3) / 255,
    ],
)
def test_given_contexts(given: Any) -> None:
    drawn = draws(open_contexts(given, LAYOUT, 16), count=60)
    assert {origin for _, origin in drawn} == {f"contexts[{index}]" for index in range(5)}
    for frames, origin in drawn:
        np.testing.assert_array_equal(frames, FRAMES[int(origin[9:-1])])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (FRAMES[0], "give (N, t, R, R, 3)"),
        (FRAMES[..., :2], "give (N, t, R, R, 3)"),
        (FRAMES[:0], "give (N, t, R, R, 3)"),
        (FRAMES.astype(np.int64), "type int64"),
        (FRAMES.astype(np.float32), "must lie in [0, 1]"),
        (FRAMES * np.nan, "must lie in [0, 1]"),
    ],
)
def test_faults_of_given_contexts(given: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(message)):
        GivenContexts(given)


class Noise:
    """A source of a user's own."""

    def __init__(self, frames: Any = None) -> None:
        self.frames = frames

    def draw(self, rng: np.random.Generator) -> tuple[Any, str]:
        frames = rng.integers(0, 256, SHAPE, np.uint8) if self.frames is None else self.frames
        return frames, "noise"


def test_a_source_of_ones_own(make_world_model: MakeWorldModel) -> None:
    env = ImaginedEnv(model=make_world_model(action_dim=2, reward=True), contexts=Noise())
    one, info = env.reset(seed=0)
    assert info == {"origin": "noise"}
    np.testing.assert_array_equal(one, env.reset(seed=0)[0])
    assert not np.array_equal(one, env.reset(seed=1)[0])


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        (FRAMES[0, :1], "uint8 (1, 16, 16, 3)"),
        (FRAMES[0] / 255, "float64 (2, 16, 16, 3)"),
        (torch.from_numpy(FRAMES[0]), "a Tensor"),
    ],
)
def test_what_a_source_draws_is_checked(frames: Any, found: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"Noise drew {found} as the context 'noise'")):
        draw_contexts(Noise(frames), [np.random.default_rng(0)], SHAPE)


@pytest.mark.parametrize("contexts", ["psht", "/no/such/folder", 3, None, Noise])
def test_anything_else_is_refused(contexts: Any) -> None:
    with pytest.raises(ConfigError, match=r"Available: 'pusht' .*, a folder of .npz episodes, an array"):
        open_contexts(contexts, LAYOUT, 16)


@pytest.mark.parametrize("contexts", ["pusht", Path()])
def test_a_goal_must_be_chosen_by_the_user(contexts: Any) -> None:
    with pytest.raises(ConfigError, match="led by a goal frame"):
        open_contexts(contexts, TokenLayout(context_frames=2, goal=True), 16)
