"""What the states of a training are: measured, taken over, or kept from the model to fine-tune."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivideogpt import CompressiveTokenizer, VideoTransformer, WorldModel, hub
from ivideogpt.config import StateConfig
from ivideogpt.data.episode import Episode
from ivideogpt.data.segment import SegmentSpec
from ivideogpt.data.sources.npz import NpzFolder, write_episode
from ivideogpt.errors import ConfigError, EpisodeError
from ivideogpt.states import state_statistics
from ivideogpt.training.run import open_batches, open_episodes, train_tokenizer, train_transformer
from ivideogpt.training.states import state_config
from ivideogpt.training.tokenizer import make_tokenizer as tokenizer_to_train
from ivideogpt.training.transformer import make_transformer as transformer_to_train

Make = Callable[..., Any]
Settings = Callable[..., Any]
MakeEpisodes = Callable[..., Path]
POSE = StateConfig(angles=(2,), mean=(1.0, 2.0, 0.0), std=(3.0, 4.0, 1.0), change=(1.0, 1.0, 0.5))


class Numbered:
    """Episodes of two states that tell their number; counts which are read."""

    def __init__(self, count: int, **metadata: Any) -> None:
        self.count, self.metadata = count, metadata
        self.read_now: list[int] = []

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Episode:
        self.read_now.append(index)
        states = np.array([[index, index % 3]], np.float32)
        return Episode(np.zeros((1, 2, 2, 3), np.uint8), states=states, metadata=self.metadata)


def test_measured_on_a_few_episodes_evenly_spread(tokenizer_settings: Settings) -> None:
    source = Numbered(2000)
    found = state_config(tokenizer_settings(states=True), source, range(1, 2000, 2))
    assert len(set(source.read_now)) == 256 and all(index % 2 for index in source.read_now)
    gaps = np.diff(sorted(set(source.read_now)))
    assert gaps.min() >= 6 and gaps.max() <= 8
    assert found is not None and found.size == 2 and found.angles == () and found.names == ()
    assert found.mean[0] == pytest.approx(1000, rel=0.01)
    assert state_config(tokenizer_settings(states=True), source, range(1, 2000, 2)) == found
    assert state_config(tokenizer_settings(states=True), Numbered(3), [0, 2]).mean == (1, 1)  # type: ignore[union-attr]


def test_frames_of_the_first_episode_alone_are_read_where_the_source_can(
    tokenizer_settings: Settings, make_episodes: MakeEpisodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_episodes(count=7, states=True, state_angles=[2], state_names=["row", "column", "turn"])
    source, whole = NpzFolder(data, state_key="state"), list[int]()
    read = source.read

    def watch(index: int) -> Episode:
        whole.append(index)
        return read(index)

    monkeypatch.setattr(source, "read", watch)
    found = state_config(tokenizer_settings(states=True, step_size=2), source, [5, 2, 6])
    assert whole == [5]
    tracks = [read(index).states for index in (5, 2, 6)]
    assert found == state_statistics(tracks, ["row", "column", "turn"], [2], step_size=2)  # type: ignore[arg-type]


def test_without_states_nothing_is_read(tokenizer_settings: Settings) -> None:
    source = Numbered(5)
    assert state_config(tokenizer_settings(), source, range(5), known=POSE) is None
    assert source.read_now == []


def test_the_metadata_say_what_the_columns_are_unless_told(tokenizer_settings: Settings) -> None:
    source = Numbered(5, state_angles=[1], state_names=["number", "turn"])
    found = state_config(tokenizer_settings(states=True), source, range(5))
    assert found is not None and found.angles == (1,) and found.names == ("number", "turn")
    for angles in ((), (1, 0)):
        found = state_config(tokenizer_settings(states=True, state_angles=angles), source, range(5))
        assert found is not None and found.angles == tuple(sorted(angles))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"state_angles": 1}, "episode 0 of the dataset: its metadata say state_angles is 1; it must be a list"),
        ({"state_angles": ["turn"]}, r"whole numbers from 0"),
        ({"state_angles": [True]}, r"whole numbers from 0"),
        ({"state_angles": [7]}, r"angles is \(7,\); they must be columns of the state, 0\.\.1"),
        ({"state_names": ["x"]}, "2 means, 2 standard deviations, 2 changes and 1 names"),
        ({"state_names": "xy"}, "a list of texts"),
    ],
)
def test_metadata_that_make_no_sense(tokenizer_settings: Settings, metadata: Any, message: str) -> None:
    with pytest.raises((EpisodeError, ConfigError), match=message):
        state_config(tokenizer_settings(states=True), Numbered(5, **metadata), range(5))


def test_episodes_that_do_not_go_together(tokenizer_settings: Settings) -> None:
    class Mixed(Numbered):
        def read(self, index: int) -> Episode:
            episode = super().read(index)
            return Episode(episode.frames, states=episode.states, metadata={"state_angles": [index % 2]})

    with pytest.raises(
        EpisodeError, match=r"episode 1 of the dataset: .*state_angles \(1,\), .*another episode.*\(0,\)"
    ):
        state_config(tokenizer_settings(states=True), Mixed(5), range(5))


def test_the_tokenizers_own_is_taken_where_it_fits(transformer_settings: Settings) -> None:
    source, config = Numbered(5), transformer_settings(states=True)
    theirs = StateConfig(mean=(5.0, 6.0), std=(7.0, 8.0), change=(1.0, 1.0))
    assert state_config(config, source, range(5), known=theirs) is theirs
    assert state_config(config, source, range(5), known=POSE).size == 2  # type: ignore[union-attr]
    other = state_config(transformer_settings(states=True, state_angles=(1,)), source, range(5), known=theirs)
    assert other is not None and other.angles == (1,) and other.mean[0] == 2


def test_the_usual_change_is_that_of_the_transformers_own_steps(
    transformer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    source = NpzFolder(make_episodes(states=True), state_key="state")
    theirs = StateConfig(mean=(5.0, 6.0, 0.0), std=(7.0, 8.0, 1.0), change=(1.0, 1.0, 1.0))
    assert state_config(transformer_settings(states=True), source, range(4), known=theirs) is theirs
    found = state_config(transformer_settings(states=True, step_size=3), source, range(4), known=theirs)
    measured = state_statistics([source.read_tracks(index)[0] for index in range(4)], step_size=3)
    assert found == theirs.model_copy(update={"change": measured.change}) != theirs


def test_settings_of_states_need_states(tokenizer_settings: Settings) -> None:
    for changes in ({"state_key": "pose"}, {"state_angles": (1,)}, {"state_weight": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} is .*but states is not set"):
            tokenizer_settings(**changes)


def test_batches_carry_states_where_asked_for(tokenizer_settings: Settings, make_episodes: MakeEpisodes) -> None:
    make_episodes(states=True)
    spec = SegmentSpec(length=4, context_frames=2)
    for states in (False, True):
        config = tokenizer_settings(states=states)
        for loader in open_batches(config, open_episodes(config, None), spec, 16):
            batch = loader.batch_at(1)
            assert (batch.states is not None) == states
            assert batch.states is None or batch.states.shape == (2, 4, 3)


def test_episodes_without_states(tokenizer_settings: Settings, make_episodes: MakeEpisodes) -> None:
    make_episodes()
    with pytest.raises(EpisodeError, match=r"unknown state key 'state'.*Available: .*--state-key, or leave --states"):
        train_tokenizer(tokenizer_settings(states=True))
    make_episodes(states=True)
    with pytest.raises(EpisodeError, match=r"unknown state key 'pose'.*Available: action, image, metadata, state"):
        train_tokenizer(tokenizer_settings(states=True, state_key="pose"))


def test_from_episodes_to_a_model_that_knows_its_state(
    tmp_path: Path, tokenizer_settings: Settings, transformer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    make_episodes(states=True, state_angles=[2])
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    list(train_tokenizer(tokenizer_settings(states=True, out=first, steps=2)))
    state = CompressiveTokenizer.from_pretrained(first / "model").config.state
    assert state is not None and state.size == 3 and state.angles == (2,)
    changes = {"tokenizer": str(first / "model"), "steps": 2, "cache_tokens": 3}
    list(train_transformer(transformer_settings(states=True, out=second, **changes)))
    model = WorldModel.from_pretrained(second / "model")
    assert model.tokenizer.config.state == model.transformer.config.state == state
    list(train_transformer(transformer_settings(out=third, **changes)))
    assert WorldModel.from_pretrained(third / "model").transformer.config.state is None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (None, "has learned none, so nothing could read them"),
        (
            StateConfig(mean=(0.0,), std=(1.0,), change=(1.0,)),
            r"1 numbers \(unnamed\), the states of the data .* are 3",
        ),
    ],
)
def test_a_tokenizer_that_cannot_read_these_states(
    tmp_path: Path,
    transformer_settings: Settings,
    make_episodes: MakeEpisodes,
    told: StateConfig | None,
    message: str,
) -> None:
    """No session could tell where it starts; nothing has been written."""
    make_episodes(states=True)
    tokenizer = CompressiveTokenizer.from_preset("micro-16", state=told)
    hub.save(tmp_path / "tokenizer", hub.Checkpoint(tokenizer=(tokenizer.config, dict(tokenizer.state_dict()))))
    with pytest.raises(ConfigError, match=message):
        train_transformer(transformer_settings(states=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [{"length": 5}, {"size": 2}])
def test_tracks_that_cannot_be_learned_from(
    tmp_path: Path, transformer_settings: Settings, make_episodes: MakeEpisodes, wrong: dict[str, int]
) -> None:
    tokenizer = CompressiveTokenizer.from_preset("micro-16", state=POSE)
    hub.save(tmp_path / "tokenizer", hub.Checkpoint(tokenizer=(tokenizer.config, dict(tokenizer.state_dict()))))
    data = make_episodes(count=3, states=True, length=wrong.get("length", 12))
    message = "all training episodes are too short"
    if "size" in wrong:  # the first batch has not seen them all
        message = "states have 2 columns in one episode and 3 in another|states have 3 columns in one episode and 2"
        path = max(data.glob("*.npz"))
        episode = NpzFolder(data).read(2)
        assert episode.states is not None
        write_episode(path, dataclasses.replace(episode, states=episode.states[:, :2].copy()))
    with pytest.raises(EpisodeError, match=message):
        train_transformer(transformer_settings(states=True, step_size=6 if "length" in wrong else 1, batch_size=1))
    assert not (tmp_path / "run").exists()


# Fine-tuning


def start(tmp_path: Path, state: StateConfig | None) -> str:
    tokenizer = CompressiveTokenizer.from_preset("micro-16", state=state)
    transformer = VideoTransformer.from_preset("micro", layout=tokenizer.layout, state=state)
    return str(WorldModel(tokenizer, transformer).save_pretrained(tmp_path / "start"))


def made(config: Any, state: StateConfig | None) -> CompressiveTokenizer | VideoTransformer:
    """The model that a training of either kind starts from."""
    if hasattr(config, "segment_frames"):
        return transformer_to_train(config, CompressiveTokenizer.from_preset("micro-16"), None, state)
    return tokenizer_to_train(config, state)


@pytest.fixture(params=["tokenizer_settings", "transformer_settings"])
def settings(request: pytest.FixtureRequest) -> Settings:
    found: Settings = request.getfixturevalue(request.param)
    return found


def test_a_new_model_gets_the_states_of_the_data(settings: Settings) -> None:
    assert made(settings(states=True), POSE).config.state == POSE
    assert made(settings(), None).config.state is None


def test_a_model_without_states_gets_them(tmp_path: Path, settings: Settings) -> None:
    config = settings(states=True, start_from=start(tmp_path, None))
    model, before = made(config, POSE), made(config, None)
    assert model.config.state == POSE and model.training == before.training
    weights = model.state_dict()
    assert all(weights[name].equal(tensor) for name, tensor in before.state_dict().items())


def test_a_model_keeps_the_states_it_has_learned(tmp_path: Path, settings: Settings) -> None:
    start_from = start(tmp_path, POSE)
    others = StateConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), change=(1.0, 1.0, 1.0))
    assert made(settings(states=True, start_from=start_from), others).config.state == POSE
    with pytest.raises(ConfigError, match="has learned states, which it would forget"):
        made(settings(start_from=start_from), None)
    with pytest.raises(ConfigError, match=r"has learned states of 3 numbers, those of the data have 1 \(state_key"):
        made(settings(states=True, start_from=start_from), StateConfig(mean=(0.0,), std=(1.0,), change=(1.0,)))
    config = settings(states=True, start_from=start_from, state_angles=())
    with pytest.raises(
        ConfigError, match=r"state_angles is \(\); the model .* angles are \(2,\), and fine-tuning keeps"
    ):
        made(config, others)
