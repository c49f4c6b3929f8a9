"""Episodes that are too short for a training's segments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ivideogpt import CompressiveTokenizer
from ivideogpt.data.episode import Episode
from ivideogpt.data.sources.npz import NpzFolder, write_episode
from ivideogpt.errors import EpisodeError
from ivideogpt.training.run import train_transformer

Settings = Callable[..., Any]
MakeEpisodes = Callable[..., Path]


def test_short_episodes_are_counted_and_said(
    tokenizer: CompressiveTokenizer, transformer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    data = make_episodes(count=5)
    source = NpzFolder(data)
    for i, length in ((2, 1), (3, 3)):
        episode = source.read(i)
        assert episode.actions is not None
        short = Episode(frames=episode.frames[:length], actions=episode.actions[:length])
        write_episode(source.path(i), short)
    config = transformer_settings(data=data, segment_frames=8, steps=3)
    with pytest.warns(UserWarning) as caught:
        assert len(list(train_transformer(config))) == 3
    said = "\n".join(str(warning.message) for warning in caught)
    assert "1 of 5 episodes are left out: a segment's context of 2 frames does not fit into them" in said
    assert "1 of 5 episodes are shorter than a segment, which spans 8 recorded frames (the shortest has 1)" in said


def test_episodes_that_are_all_too_short_are_refused(
    tokenizer: CompressiveTokenizer, transformer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    with pytest.raises(
        EpisodeError, match=r"a segment of 8 frames spans 15 recorded ones, and the episodes have 12 to"
    ):
        train_transformer(transformer_settings(data=make_episodes(length=12), segment_frames=8, step_size=2))
