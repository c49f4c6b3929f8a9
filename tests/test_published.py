"""Published checkpoints are what they are: their goal and trained frames, which their files do not say."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from ivideogpt import VideoTransformer, WorldModel
from ivideogpt.errors import ConfigError
from ivideogpt.published import PUBLISHED
from tests.conftest import MakeFrames, MakeTokenizer, MakeTransformer
from tests.reference.checkpoints import (
    made_up,
    tokenizer_config,
    tokenizer_shapes,
    transformer_config,
    transformer_shapes,
    write_official,
)


def write(folder: Path, action_dim: int | None = 4, **changes: Any) -> Path:
    """A small checkpoint as the published code writes it."""
    config = tokenizer_config(**changes)
    llama = transformer_config(config)
    weights = made_up(tokenizer_shapes(config), seed=1)
    write_official(folder, (config, weights), (llama, made_up(transformer_shapes(llama, action_dim, False), seed=2)))
    return folder


def told(model: WorldModel) -> tuple[bool, int | None, int]:
    return model.layout.goal, model.transformer.config.trained_frames, model.trained_horizon


def test_a_published_name_brings_its_facts(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="16 pixels; thuml/ivideogpt-oxe-64-goal-cond was published with 2 of 64"):
        assert told(WorldModel.from_pretrained(write(tmp_path / "ivideogpt-oxe-64-goal-cond"))) == (True, 17, 15)
    with pytest.warns(UserWarning, match="nonetheless"):
        assert told(WorldModel.from_pretrained(write(tmp_path / "ivideogpt-robonet-64-act-cond"))) == (False, 12, 10)
    with pytest.warns(UserWarning, match="nonetheless"):
        cached = write(tmp_path / "models--thuml--ivideogpt-vp2-robodesk-64-act-cond" / "snapshots" / "0f3a")
        assert told(WorldModel.from_pretrained(cached)) == (False, 12, 10)
    with pytest.warns(UserWarning, match="nonetheless"):
        folder = write(tmp_path / "ivideogpt-bair-64-act-free", context_length=1)
        assert told(WorldModel.from_pretrained(folder)) == (False, 16, 15)
    with (
        pytest.warns(UserWarning, match="nonetheless"),
        pytest.raises(ConfigError, match=r"goal is True, but model .*bair-64-act-free' is known to have goal False"),
    ):
        WorldModel.from_pretrained(folder, goal=True)


def test_the_table_is_that_of_the_nine_checkpoints() -> None:
    assert len(PUBLISHED) == 9
    assert [known for known, published in PUBLISHED.items() if published.goal] == ["thuml/ivideogpt-oxe-64-goal-cond"]
    assert {published.trained_frames for published in PUBLISHED.values()} == {12, 16, 17}
    assert all(str(published.resolution) in known for known, published in PUBLISHED.items())
    assert all((published.context_frames == 1) == ("bair" in known) for known, published in PUBLISHED.items())


def test_another_name_is_what_the_arguments_say(tmp_path: Path) -> None:
    folder = write(tmp_path / "some")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told(WorldModel.from_pretrained(folder, goal=True, trained_frames=9)) == (True, 9, 7)
        assert VideoTransformer.from_pretrained(folder, goal=False, trained_frames=4).config.trained_frames == 4
    with pytest.warns(UserWarning, match=r"Assumed: trained_frames=17\. Give goal= and"):
        assert told(WorldModel.from_pretrained(folder, goal=True)) == (True, 17, 15)
    with pytest.warns(UserWarning) as said:
        assert told(WorldModel.from_pretrained(folder)) == (False, 16, 14)
    assert len(said) == 1
    assert "Assumed: goal=False, trained_frames=16." in str(said[0].message)


def test_trained_frames_count_the_context(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained_frames is 2; it counts the 2 context frames too"):
        WorldModel.from_pretrained(write(tmp_path / "some"), goal=False, trained_frames=2)
    with pytest.raises(ConfigError, match="context_frames is 1 with a goal"):
        WorldModel.from_pretrained(write(tmp_path / "one", context_length=1), goal=True, trained_frames=9)


@pytest.mark.parametrize("layout", ["native", "official"])
def test_what_a_model_says_itself_is_not_contradicted(
    layout: Any, make_tokenizer: MakeTokenizer, make_transformer: MakeTransformer, tmp_path: Path
) -> None:
    """Also not where its folder is called like a published checkpoint."""
    tokenizer = make_tokenizer(widths=(32, 32), norm_groups=32, patch_size=4)
    model = WorldModel(tokenizer, make_transformer(layout=tokenizer.layout, trained_frames=8))
    folder = model.save_pretrained(tmp_path / "ivideogpt-oxe-64-goal-cond", layout=layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told(WorldModel.from_pretrained(folder)) == (False, 8, 6)
        assert told(WorldModel.from_pretrained(folder, goal=False, trained_frames=8)) == (False, 8, 6)
    with pytest.raises(ConfigError, match=r"goal is True, but model .* known to have goal False"):
        WorldModel.from_pretrained(folder, goal=True)
    with pytest.raises(ConfigError, match=r"trained_frames is 9, but .* known to have trained_frames 8"):
        WorldModel.from_pretrained(folder, trained_frames=9)


def test_a_goal_lasts_when_a_session_renews_its_context(tmp_path: Path, make_frames: MakeFrames) -> None:
    model = WorldModel.from_pretrained(write(tmp_path / "some", None), goal=True, trained_frames=4)
    resolution = model.tokenizer.config.resolution
    context = make_frames(batch=1, frames=2, resolution=resolution)
    session = model.start(context, seed=0)
    assert session.horizon == 2
    for _ in range(session.horizon + 2):
        newest = session.step().frame
    assert newest is not None
    assert torch.equal(session.frames[0, 0], context[0, 0])
    assert torch.equal(session.frames[0, 1], newest[0])
