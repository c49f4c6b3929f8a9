from __future__ import annotations

import dataclasses
from pathlib import Path

from PIL import Image

from ivideogpt import WorldModel
from ivideogpt.data.episode import Episode
from ivideogpt.evaluation.prediction import predict_episode
from ivideogpt.evaluation.report import prediction_section, write_prediction


def test_pusht_shows_where_the_block_goes(world_model: WorldModel, episodes: list[Episode], tmp_path: Path) -> None:
    prediction = predict_episode(world_model, episodes[0], horizon=3)
    wrote = write_prediction(tmp_path / "pusht", prediction, prediction.metrics)
    assert wrote[-1] == ("block per frame", tmp_path / "pusht" / "block.png")
    assert all(path.is_file() for _, path in wrote)
    assert Image.open(wrote[-1][1]).height == 3 * Image.open(tmp_path / "pusht" / "psnr.png").height
    plots = prediction_section("title", Path("pusht"), prediction).plots
    assert plots == [Path("pusht/psnr.png"), Path("pusht/block.png")]


def test_other_videos_have_no_block(world_model: WorldModel, episodes: list[Episode], tmp_path: Path) -> None:
    prediction = predict_episode(world_model, dataclasses.replace(episodes[0], states=None), horizon=3)
    wrote = write_prediction(tmp_path / "other", prediction, prediction.metrics)
    assert "block.png" not in {path.name for _, path in wrote}
    assert prediction_section("title", Path("other"), prediction).plots == [Path("other/psnr.png")]
