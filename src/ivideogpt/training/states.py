"""Which states a training learns: how many numbers, which of them are angles, and how they are brought to unit size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.config import StateConfig
from ivideogpt.data.episode import Episode
from ivideogpt.data.loader import EpisodeSource, TrackSource
from ivideogpt.errors import ConfigError, EpisodeError
from ivideogpt.states import state_statistics
from ivideogpt.training.config import TrainingConfig, TransformerTrainingConfig

ANGLES, NAMES = "state_angles", "state_names"
"""Where an episode's metadata say which columns of its states are angles, and what the columns are called."""

_MOST_EPISODES = 256


def state_config(
    config: TrainingConfig, source: EpisodeSource, indices: Sequence[int], known: StateConfig | None = None
) -> StateConfig | None:
    """What the states of a training are, measured on some of its episodes, the same ones each time.

    Args:
        config: see `TrainingConfig`; without `states` there are none.
        source: the episodes, read with their states.
        indices: those to train on, of which at most 256, evenly spread, are read; all but the first without their
            frames and metadata where the source can.
        known: the tokenizer's, taken over where it fits the episodes and the configuration; with a step size above 1
            its usual change is measured anew.

    Raises:
        EpisodeError: an episode has no states, or they differ in size between the episodes.
        ConfigError: `state_angles` that are no columns.
    """
    if not config.states:
        return None
    count = min(len(indices), _MOST_EPISODES)
    picked = [indices[number * len(indices) // count] for number in range(count)]
    first = source.read(picked[0])
    names, angles = _described(first, picked[0])
    if config.state_angles is not None:
        angles = tuple(sorted(config.state_angles))
    size = _states(first, picked[0]).shape[1]
    if known is not None and (known.size, known.angles, known.names) != (size, angles, names):
        known = None
    if known is not None and config.step_size == 1:
        return known
    measured = state_statistics(_read(source, picked), names, angles, config.step_size)
    # Mean and deviation are how the tokenizer's states are meant; how far a step goes, it may have seen differently.
    return measured if known is None else known.model_copy(update={"change": measured.change})


def require_same_states(config: TransformerTrainingConfig, told: StateConfig | None, found: StateConfig | None) -> None:
    """Refuse states that the tokenizer cannot read from frames: a session would not know where it starts.

    Args:
        config: see `TransformerTrainingConfig`.
        told: the tokenizer's.
        found: those to learn; None for none.

    Raises:
        ConfigError: the tokenizer has learned no states, or others.
    """
    if found is None:
        return
    if told is None:
        raise ConfigError(
            f"states is set, but the tokenizer {config.tokenizer_name} has learned none, so nothing could read them "
            "from frames. Train it on these episodes with --states first; --start-from keeps what it has learned."
        )
    if told.size != found.size or (told.names and found.names and told.names != found.names):
        raise ConfigError(
            f"the tokenizer {config.tokenizer_name} has learned {_words(told)}, the states of the data (state_key "
            f"{config.state_key!r}) are {_words(found)}. Train both on the same states."
        )


def _words(state: StateConfig) -> str:
    return f"{state.size} numbers ({', '.join(state.names) or 'unnamed'})"


def kept_state(
    learned: StateConfig | None, found: StateConfig | None, config: TrainingConfig, model: str
) -> StateConfig | None:
    """What the states of a model to fine-tune are: what they were where it has learned some, else the data's.

    Args:
        learned: the model's.
        found: the data's; None where the training learns no states.
        config: see `TrainingConfig`.
        model: the model's name.

    Raises:
        ConfigError: other columns or angles than the model has learned, or none.
    """
    if learned is None:
        return found
    if found is None:
        raise ConfigError(
            f"the model {model} has learned states, which it would forget without them. Set states (--states), or "
            "start from a model without states."
        )
    if learned.size != found.size:
        raise ConfigError(
            f"the model {model} has learned states of {learned.size} numbers, those of the data have {found.size} "
            f"(state_key {config.state_key!r}). Name an array of that size, or fine-tune a model without states."
        )
    if config.state_angles is not None and learned.angles != found.angles:
        raise ConfigError(
            f"state_angles is {found.angles}; the model {model} has learned states whose angles are "
            f"{learned.angles}, and fine-tuning keeps them. Leave state_angles out."
        )
    return learned


def _read(source: EpisodeSource, indices: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
    if isinstance(source, TrackSource):
        yield from (source.read_tracks(index)[0] for index in indices)
        return
    said = None
    for index in indices:
        episode = source.read(index)
        described = _described(episode, index)
        if said is not None and said != described:
            raise EpisodeError(
                f"episode {index} of the dataset: its metadata say {NAMES} {described[0]} and {ANGLES} {described[1]}, "
                f"those of another episode {said[0]} and {said[1]}; one dataset has one kind. Keep episodes of another "
                "kind in another folder."
            )
        said = described
        yield _states(episode, index)


def _states(episode: Episode, index: int) -> npt.NDArray[np.float32]:
    if episode.states is None:
        raise EpisodeError(f"episode {index} of the dataset has no states. Record them, or leave --states out.")
    return episode.states


def _described(episode: Episode, index: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and angles of the columns as the metadata say; the angles rising."""
    names: Any = episode.metadata.get(NAMES, [])
    angles: Any = episode.metadata.get(ANGLES, [])
    for field, values, kind in ((NAMES, names, str), (ANGLES, angles, int)):
        if not isinstance(values, (list, tuple)) or not all(type(value) is kind for value in values):
            raise EpisodeError(
                f"episode {index} of the dataset: its metadata say {field} is {values!r}; it must be a list of "
                f"{'texts' if kind is str else 'columns, whole numbers from 0'}."
            )
    return tuple(names), tuple(sorted(angles))
