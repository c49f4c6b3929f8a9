from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ivideogpt import WorldModel
from ivideogpt.config import DataFacts, SamplingConfig
from ivideogpt.data.episode import Episode
from ivideogpt.data.segment import fit_to_square
from ivideogpt.errors import ConfigError, EpisodeError
from ivideogpt.evaluation.prediction import (
    FrameScores,
    Prediction,
    evaluate_episodes,
    predict_episode,
    predict_episodes,
    shuffle_actions,
    summarize,
)

VIDEOS = ("imagined", "copy_last", "reconstruction", "shuffled")


def prediction_with(**psnrs: float) -> Prediction:
    """Constant PSNR by name, two future frames."""
    video = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    scores = {name: FrameScores(torch.full((2,), value), torch.ones(2)) for name, value in psnrs.items()}
    return Prediction(video, video, video, video, None, context_frames=2, scores=scores)


def test_predicts_one_episode(world_model: WorldModel, episodes: list[Episode]) -> None:
    prediction = predict_episode(world_model, episodes[0], start=3, horizon=4)
    real = torch.from_numpy(episodes[0].frames[3:9]).movedim(-1, 1)
    assert torch.equal(prediction.real, real)
    assert torch.equal(prediction.imagined[:2], real[:2])
    assert torch.equal(prediction.copy_last[2:], real[1].expand(4, -1, -1, -1))
    for name in VIDEOS:
        video = getattr(prediction, name)
        assert (video.shape, video.dtype) == ((6, 3, 64, 64), torch.uint8)
        assert prediction.scores[name].psnr.shape == prediction.scores[name].ssim.shape == (4,)
    reference = (prediction.copy_last[2:].float() - real[2:].float()).square().mean(dim=(1, 2, 3)) / 255**2
    assert torch.allclose(prediction.scores["copy_last"].psnr, -10 * reference.log10(), atol=1e-3)


def test_the_same_seed_gives_the_same_future(world_model: WorldModel, episodes: list[Episode]) -> None:
    futures = [predict_episode(world_model, episodes[0], horizon=3, seed=seed).imagined for seed in (1, 1, 2)]
    assert torch.equal(futures[0], futures[1])
    assert not torch.equal(futures[0], futures[2])


def test_sampling_can_be_chosen(world_model: WorldModel, episodes: list[Episode]) -> None:
    greedy = SamplingConfig(temperature=0)
    futures = [
        predict_episode(world_model, episodes[0], horizon=3, seed=seed, sampling=greedy).imagined for seed in (1, 2)
    ]
    assert torch.equal(*futures)


def test_a_copy_for_inference_predicts_the_same(world_model: WorldModel, episodes: list[Episode]) -> None:
    models = (world_model, world_model.for_inference("float32"))
    ours, theirs = (predict_episode(model, episodes[0], horizon=3, seed=1).imagined.int() for model in models)
    assert int((ours - theirs).abs().max()) <= 1


def test_an_episode_does_not_depend_on_its_batch(world_model: WorldModel, episodes: list[Episode]) -> None:
    batched = list(predict_episodes(world_model, episodes, horizon=3, seed=7, batch_size=2))
    assert len(batched) == 5
    for number, prediction in enumerate(batched):
        alone = predict_episode(world_model, episodes[number], horizon=3, seed=7 + number)
        difference = (prediction.imagined.int() - alone.imagined.int()).abs()
        assert int(difference.max()) <= 1  # batches of another size round otherwise


def test_evaluates_episodes(world_model: WorldModel, episodes: list[Episode]) -> None:
    seen: list[tuple[int, int]] = []
    evaluation = evaluate_episodes(
        world_model, episodes, horizon=3, batch_size=4, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 5) for done in range(1, 6)]
    metrics = evaluation.metrics
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert (metrics["episodes"], metrics["context_frames"], metrics["horizon"]) == (5, 2, 3)
    for name in VIDEOS:
        per_episode = metrics["per_episode"]["psnr"][name]
        per_frame = metrics["per_frame"]["psnr"][name]
        assert (len(per_episode), len(per_frame)) == (5, 3)
        assert metrics["psnr"][name] == pytest.approx(np.mean(per_episode), rel=1e-5)
        assert metrics["psnr"][name] == pytest.approx(np.mean(per_frame), rel=1e-5)
    assert metrics["objects"]["real"]["agent_visible_share"] == 1
    assert metrics["objects"]["real"]["block_mean_iou_at_last_frame"] > 0.9
    assert len(metrics["objects"]["imagined"]["per_frame"]["block_mean_iou"]) == 3


def test_summary_says_how_far_the_model_gets() -> None:
    metrics = summarize(
        [
            prediction_with(imagined=28.0, copy_last=24.0, reconstruction=32.0, shuffled=25.0),
            prediction_with(imagined=32.0, copy_last=24.0, reconstruction=32.0, shuffled=29.0),
        ]
    )
    assert metrics["psnr"]["imagined"] == 30
    assert metrics["share_of_ceiling"] == pytest.approx(0.75)
    assert metrics["psnr_lost_by_shuffling"] == pytest.approx(3)
    assert metrics["per_episode"]["psnr"]["imagined"] == [28, 32]
    assert metrics["objects"] is None


def test_summary_has_no_share_where_copying_is_the_ceiling() -> None:
    metrics = prediction_with(imagined=20.0, copy_last=30.0, reconstruction=25.0).metrics
    assert metrics["share_of_ceiling"] is None
    assert metrics["psnr_lost_by_shuffling"] is None


def test_models_without_actions_need_none(make_world_model: Callable[..., WorldModel], episodes: list[Episode]) -> None:
    video = dataclasses.replace(episodes[0], actions=None, states=None)
    prediction = predict_episode(make_world_model(action_dim=None), video, horizon=3)
    assert prediction.shuffled is None
    assert "shuffled" not in prediction.scores
    assert prediction.metrics["objects"] is None


def test_a_goal_comes_first(make_world_model: Callable[..., WorldModel], episodes: list[Episode]) -> None:
    prediction = predict_episode(make_world_model(goal=True), episodes[0], horizon=3)
    frames = torch.from_numpy(episodes[0].frames).movedim(-1, 1)
    assert torch.equal(prediction.real, frames[[3, 0, 1, 2, 3]])
    assert torch.equal(prediction.copy_last[2:], frames[0].expand(3, -1, -1, -1))


@pytest.mark.parametrize("seed", range(5))
def test_shuffling_leaves_nothing_in_place(seed: int) -> None:
    actions = torch.arange(6 * 5, dtype=torch.float32).view(6, 5, 1)
    among_episodes = shuffle_actions(actions, range(1, 4), seed)
    assert among_episodes is not None
    assert (among_episodes != actions).all()
    assert torch.equal(among_episodes.sort(dim=0).values, actions)
    over_time = shuffle_actions(actions[:1], range(1, 4), seed)
    assert over_time is not None
    assert (over_time != actions[:1]).flatten().tolist() == [False, True, True, True, False]
    assert torch.equal(over_time.sort(dim=1).values, actions[:1])


def test_one_action_cannot_be_shuffled(world_model: WorldModel, episodes: list[Episode]) -> None:
    assert predict_episode(world_model, episodes[0], horizon=1).shuffled is None


def test_episodes_that_do_not_fit_are_refused(world_model: WorldModel, episodes: list[Episode]) -> None:
    episode = episodes[0]
    with pytest.raises(EpisodeError, match=r"has 12 frames.*needs 13"):
        predict_episode(world_model, episode, start=5, horizon=6)
    with pytest.raises(EpisodeError, match="Start earlier"):
        predict_episode(world_model, episode, start=-1, horizon=3)
    with pytest.raises(EpisodeError, match="no actions; this model takes actions of size 2"):
        predict_episode(world_model, dataclasses.replace(episode, actions=None), horizon=3)
    wide = dataclasses.replace(episode, actions=np.zeros((12, 7), np.float32))
    with pytest.raises(EpisodeError, match="size 7; this model takes actions of size 2"):
        predict_episode(world_model, wide, horizon=3)
    with pytest.raises(EpisodeError, match=r"has 12 frames.*needs 14"):
        predict_episode(world_model, episode, start=5, horizon=3, step_size=2)
    with pytest.raises(EpisodeError, match="there are 0 episodes to predict"):
        evaluate_episodes(world_model, [], horizon=3)


def test_frames_of_any_size_are_fitted_to_the_model(world_model: WorldModel, episodes: list[Episode]) -> None:
    wide = dataclasses.replace(episodes[1], frames=np.ascontiguousarray(episodes[1].frames[:, ::2].repeat(3, axis=2)))
    whole, fitted = predict_episodes(world_model, [episodes[0], wide], horizon=3)
    assert whole.real.shape == fitted.real.shape == (5, 3, 64, 64)
    frames = torch.from_numpy(wide.frames[:5]).movedim(-1, 1)
    assert torch.equal(fitted.real, fit_to_square(frames, 64))


def test_steps_of_several_frames(make_world_model: Callable[..., WorldModel], episodes: list[Episode]) -> None:
    world_model = make_world_model(action_dim=4)
    prediction = predict_episode(world_model, episodes[0], start=1, horizon=3, step_size=2)
    real = torch.from_numpy(episodes[0].frames[[1, 3, 5, 7, 9]]).movedim(-1, 1)
    assert torch.equal(prediction.real, real)
    assert episodes[0].actions is not None
    every_second = dataclasses.replace(
        episodes[0],
        frames=episodes[0].frames[1::2],
        actions=np.concatenate([episodes[0].actions[1::2], episodes[0].actions[[2, 4, 6, 8, 10, 11]]], axis=1),
        rewards=None,
        states=None,
        contacts=None,
    )
    same = predict_episode(world_model, every_second, horizon=3)
    assert torch.equal(prediction.imagined, same.imagined)
    assert prediction.actions is not None and same.actions is not None
    assert torch.equal(prediction.actions, same.actions)


def test_blocks_with_a_goal_in_front(make_world_model: Callable[..., WorldModel], episodes: list[Episode]) -> None:
    model = make_world_model(action_dim=6, goal=True)
    prediction = predict_episode(model, episodes[0], start=1, horizon=3, step_size=3)
    assert prediction.actions is not None and episodes[0].actions is not None
    order = [[10, 11, 11], [1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 11]]  # the episode ends with frame 11
    assert torch.equal(prediction.actions, torch.from_numpy(episodes[0].actions[order]).flatten(1))


def test_a_model_takes_blocks_of_its_own_step_size(
    make_world_model: Callable[..., WorldModel], world_model: WorldModel, episodes: list[Episode]
) -> None:
    with pytest.raises(EpisodeError, match=r"actions of size 2, 4 numbers with step size 2; this model .*size 2"):
        predict_episode(world_model, episodes[0], horizon=3, step_size=2)
    with pytest.raises(
        EpisodeError,
        match=r"actions of size 2; this model takes .*size 4\. With step size k .* Perhaps its step size is 2\.",
    ):
        predict_episode(make_world_model(action_dim=4), episodes[0], horizon=3)


def test_the_model_knows_its_step_size(make_world_model: Callable[..., WorldModel], episodes: list[Episode]) -> None:
    model = make_world_model(action_dim=4)
    given = evaluate_episodes(model, episodes[:2], horizon=2, step_size=2).predictions
    facts = DataFacts(step_size=2)
    model.transformer.config = model.transformer.config.model_copy(update={"data": facts})
    for known in (model, model.for_inference("float32")):
        own = evaluate_episodes(known, episodes[:2], horizon=2).predictions
        assert all(torch.equal(a.real, b.real) for a, b in zip(given, own, strict=True))
        assert torch.equal(predict_episode(known, episodes[0], horizon=2).real, given[0].real)
        with pytest.raises(ConfigError, match="step_size is 1, but this model was trained with step size 2"):
            evaluate_episodes(known, episodes[:2], horizon=2, step_size=1)
