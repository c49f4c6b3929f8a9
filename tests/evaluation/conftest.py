"""A random world model of the smallest size, and true Push-T episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from ivideogpt import CompressiveTokenizer, VideoTransformer, WorldModel
from ivideogpt.config import StateConfig
from ivideogpt.data.episode import Episode
from ivideogpt.envs.record import pusht_episode


def micro_world_model(action_dim: int | None = 2, goal: bool = False, state: StateConfig | None = None) -> WorldModel:
    """Random weights, for frames of 64 pixels."""
    torch.manual_seed(0)
    tokenizer = CompressiveTokenizer.from_preset("micro-16", resolution=64, stem_stride=4, state=state)
    layout = dataclasses.replace(tokenizer.layout, goal=goal)
    transformer = VideoTransformer.from_preset("micro", action_dim=action_dim, layout=layout, state=state)
    if transformer.action_in is not None:
        torch.nn.init.normal_(transformer.action_in.weight)  # it starts at zero, blind to the actions
    return WorldModel(tokenizer, transformer)


@pytest.fixture(scope="session")
def make_world_model() -> Callable[..., WorldModel]:
    return micro_world_model


@pytest.fixture(scope="session")
def world_model() -> WorldModel:
    return micro_world_model()


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    return [pusht_episode(950_000 + i, 12) for i in range(5)]
