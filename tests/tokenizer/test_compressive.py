"""The compressive tokenizer: sizes, what depends on what, any number of context frames, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import CompressiveTokenizer
from ivideogpt.errors import ConfigError, ShapeError
from ivideogpt.presets import TOKENIZERS

MakeTokenizer = Callable[..., CompressiveTokenizer]
MakeFrames = Callable[..., Tensor]


@pytest.mark.parametrize(("preset", "count"), [("oxe-64", 114_159_174), ("oxe-256", 310_472_774)])
def test_official_parameter_counts(preset: str, count: int) -> None:
    with torch.device("meta"):
        tokenizer = CompressiveTokenizer.from_preset(preset)
    assert sum(weight.numel() for weight in tokenizer.parameters()) == count


@pytest.mark.parametrize("preset", sorted(TOKENIZERS))
def test_every_preset_can_be_built(preset: str) -> None:
    with torch.device("meta"):
        assert CompressiveTokenizer.from_preset(preset).layout.context_frames == 2


def test_nano_goes_there_and_back(make_frames: MakeFrames) -> None:
    torch.manual_seed(0)
    tokenizer = CompressiveTokenizer.from_preset("nano-64").eval()
    tokens = tokenizer.tokenize(make_frames(1, 3, 64))
    assert tokens.shape == (1, 2 * 65 - 1 + 17)
    video = tokenizer.detokenize(tokens)
    assert video.shape == (1, 3, 3, 64, 64)
    assert 0 <= video.min() <= video.max() <= 1


@pytest.mark.parametrize("context_frames", [1, 2, 3])
@pytest.mark.parametrize("future", [0, 1, 4])
def test_any_number_of_context_frames(
    make_tokenizer: MakeTokenizer, make_frames: MakeFrames, context_frames: int, future: int
) -> None:
    tokenizer = make_tokenizer(context_frames=context_frames)
    frames = make_frames(2, context_frames + future)
    tokens = tokenizer.tokenize(frames)
    assert tokens.shape == (2, 17 * context_frames - 1 + 5 * future)
    assert tokenizer.detokenize(tokens).shape == frames.shape
    context, dynamics = tokenizer.layout.split(tokens)
    assert len(context.unique()) > 5, "a codebook that collapsed would hide mistakes"
    assert future == 0 or len(dynamics.unique()) > 2


def test_a_reconstruction_is_what_the_tokens_say(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames = make_tokenizer(), make_frames()
    with torch.no_grad():
        made = tokenizer(frames)
    tokens = tokenizer.layout.assemble(made.context_codes, made.dynamics_codes)
    assert torch.equal(tokens, tokenizer.tokenize(frames))
    video = torch.cat([made.context, made.future], dim=1).clamp(0, 1)
    torch.testing.assert_close(video, tokenizer.detokenize(tokens), atol=1e-5, rtol=1e-5)
    assert made.context_vectors.shape == (2, 2, 16, 8)
    assert made.dynamics_vectors.shape == (2, 3, 4, 8)
    for quantizer, vectors, codes in [
        (tokenizer.context_quantizer, made.context_vectors, made.context_codes),
        (tokenizer.dynamics_quantizer, made.dynamics_vectors, made.dynamics_codes),
    ]:
        assert torch.equal(quantizer(vectors).codes, codes)
        assert (vectors - quantizer.lookup(codes)).abs().max() > 0.1, "what was quantized, not what became of it"


def test_context_is_encoded_and_decoded_once(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, seen = make_tokenizer(), []
    for network in (tokenizer.context_encoder, tokenizer.context_decoder):
        network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    for block in (*tokenizer.prediction_encoder.cross, *tokenizer.prediction_decoder.cross):
        block.context_norm.register_forward_hook(lambda _, inputs, __: seen.append(-len(inputs[0])))
    tokenizer.detokenize(tokenizer.tokenize(make_frames(2, 7)))
    networks, norms = [n for n in seen if n > 0], [n for n in seen if n < 0]
    assert networks == [4, 4], "2 videos x 2 context frames, each way"
    blocks = len(tokenizer.prediction_encoder.cross) + len(tokenizer.prediction_decoder.cross)
    assert norms == [-2] * blocks, "one set of keys and values a video, not one a future frame"


@pytest.mark.parametrize("attention_resolution", [4, 8, 16])
@torch.no_grad()
def test_future_frames_do_not_need_the_contexts_pixels(
    make_tokenizer: MakeTokenizer, make_frames: MakeFrames, attention_resolution: int
) -> None:
    tokenizer = make_tokenizer(attention_resolution=attention_resolution)
    context_codes, dynamics_codes = tokenizer.layout.split(tokenizer.tokenize(make_frames()))
    whole, maps_only = (tokenizer.decode_context(context_codes, pixels=pixels) for pixels in (True, False))
    assert maps_only.frames.shape == (2, 0, 3, 16, 16)
    expected = tokenizer.decode_future(dynamics_codes, whole)
    assert torch.equal(tokenizer.decode_future(dynamics_codes, maps_only), expected)


@torch.no_grad()
def test_frame_by_frame_is_the_same_as_all_at_once(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames = make_tokenizer(context_frames=3), make_frames(2, 7)
    together = tokenizer(frames)
    for b in range(2):
        for j in range(3, 7):
            alone = tokenizer(torch.cat([frames[b, :3], frames[b, j : j + 1]])[None])
            assert torch.equal(alone.dynamics_codes[0, 0], together.dynamics_codes[b, j - 3])
            torch.testing.assert_close(alone.future[0, 0], together.future[b, j - 3], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_future_frames_are_independent_of_each_other(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames = make_tokenizer(), make_frames(1, 6)
    other = frames.clone()
    other[:, 3] = 1 - other[:, 3]
    before, after = tokenizer(frames), tokenizer(other)
    assert torch.equal(before.context, after.context)
    changed = (before.future != after.future).flatten(2).any(2)[0]
    assert changed.tolist() == [False, True, False, False]


@torch.no_grad()
def test_future_frames_see_every_context_frame(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames = make_tokenizer(context_frames=3), make_frames(1, 4)
    tokens = tokenizer(frames)
    for j in range(3):
        other = frames.clone()
        other[:, j] = 1 - other[:, j]
        made = tokenizer(other)
        assert not torch.equal(made.dynamics_vectors, tokens.dynamics_vectors), f"encoder, context frame {j}"
        assert not torch.equal(made.future, tokens.future), f"decoder, context frame {j}"
    # Positions tell the context frames apart.
    swapped = tokenizer(frames[:, [1, 0, 2, 3]])
    assert (swapped.dynamics_vectors - tokens.dynamics_vectors).abs().max() > 1e-3


@torch.no_grad()
def test_patches_run_over_rows_columns_channels(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, seen = make_tokenizer(), dict[str, Tensor]()

    def watch(name: str, what: str) -> None:
        def keep(_: Any, inputs: Any, output: Any) -> None:
            seen[name] = inputs[0] if what == "input" else output[0] if isinstance(output, tuple) else output

        tokenizer.get_submodule(name).register_forward_hook(keep)

    watch("prediction_encoder", "output")
    watch("dynamics_in", "input")
    watch("dynamics_out", "output")
    watch("prediction_decoder", "input")
    tokenizer(make_frames(1, 3))
    p, side = tokenizer.config.patch_size, 2
    for latent, patches in [("prediction_encoder", "dynamics_in"), ("prediction_decoder", "dynamics_out")]:
        for index in range(side * side):
            top, left = index // side * p, index % side * p
            patch = [
                seen[latent][0, channel, top + row, left + column]
                for row in range(p)
                for column in range(p)
                for channel in range(tokenizer.config.latent_channels)
            ]
            assert torch.equal(seen[patches][0, index], torch.stack(patch))


@pytest.mark.parametrize("new", [1, 2, 4])
def test_another_number_of_context_frames(make_tokenizer: MakeTokenizer, make_frames: MakeFrames, new: int) -> None:
    tokenizer = make_tokenizer(context_frames=3)
    before = {name: weight.clone() for name, weight in tokenizer.state_dict().items()}
    other = tokenizer.with_context_frames(new)
    assert (other.config.context_frames, other.layout.context_frames) == (new, new)
    assert tokenizer.config.context_frames == 3
    kept, size = min(new, 3), 0
    for name, weight in other.state_dict().items():
        if name.endswith("context_position"):
            size = len(before[name]) // 3
            assert len(weight) == new * size
            assert torch.equal(weight[-kept * size :], before[name][-kept * size :]), "the newest frames' rows"
        else:
            assert torch.equal(weight, before[name]), name
    assert other.tokenize(make_frames(1, new + 2)).shape == (1, other.layout.length(new + 2))
    assert not other.training
    for weight in other.parameters():
        weight.data.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in tokenizer.state_dict().items()), "a copy"


@torch.no_grad()
def test_frames_added_in_front_begin_close_to_the_loaded_model(
    make_tokenizer: MakeTokenizer, make_frames: MakeFrames
) -> None:
    """Attention to the oldest frame twice over changes its share, so the future is close, not the same."""
    tokenizer, frames = make_tokenizer(context_frames=1), make_frames(1, 2)
    longer = tokenizer.with_context_frames(2)(torch.cat([frames[:, :1], frames], dim=1))
    # The same frame twice: the same keys and values twice, so softmax gives exactly the same mean.
    torch.testing.assert_close(longer.future, tokenizer(frames).future, atol=1e-5, rtol=1e-5)


def test_a_copy_keeps_precision_and_mode(make_tokenizer: MakeTokenizer) -> None:
    copy = make_tokenizer().to(torch.bfloat16).train().with_context_frames(3)
    assert {weight.dtype for weight in copy.parameters()} == {torch.bfloat16}
    assert copy.training


def test_dropout_only_in_training(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames = make_tokenizer(), make_frames()
    assert torch.equal(tokenizer(frames).future, tokenizer(frames).future)
    tokenizer.train()
    assert not torch.equal(tokenizer(frames).future, tokenizer(frames).future)


def test_gradients_reach_every_parameter(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames = make_tokenizer(), make_frames()
    made = tokenizer(frames)
    loss = (made.future - frames[:, 2:]).square().sum() + (made.context - frames[:, :2]).square().sum()
    (loss + made.commitment_context + made.commitment_dynamics).backward()
    missing = [name for name, weight in tokenizer.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not missing


# Frames as they come


def test_bytes_are_the_same_as_floats(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer = make_tokenizer()
    frames = (make_frames() * 255).round().to(torch.uint8)
    for same in (frames.float() / 255, frames.double() / 255):
        assert torch.equal(tokenizer.tokenize(frames), tokenizer.tokenize(same))
    assert torch.equal(tokenizer.require_frames(frames), frames.float() / 255)


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        (torch.zeros(3, 3, 16, 16), r"shape \(3, 3, 16, 16\); this model takes \(B, T, 3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, 3), "Check the channel order"),
        (torch.zeros(1, 3, 1, 16, 16), r"shape \(1, 3, 1, 16, 16\)"),
        (torch.zeros(1, 3, 3, 64, 64), "resize the frames"),
        (torch.zeros(1, 3, 3, 16, 24), r"shape \(1, 3, 3, 16, 24\)"),
        (torch.zeros(1, 1, 3, 16, 16), "1 frames are fewer than the 2 context frames"),
        (torch.zeros(1, 3, 3, 16, 16, dtype=torch.int64), "type torch.int64; give float"),
        (torch.full((1, 3, 3, 16, 16), 255.0), r"these lie in \[255, 255\].*Divide 0..255 frames by 255"),
        (torch.full((1, 3, 3, 16, 16), -0.5), r"these lie in \[-0.5, -0.5\]"),
        (torch.full((1, 3, 3, 16, 16), torch.nan), "must lie in .* and be finite"),
        (torch.full((1, 3, 3, 16, 16), torch.inf), "must lie in .* and be finite"),
    ],
)
def test_refuses_frames_that_are_none(make_tokenizer: MakeTokenizer, frames: Tensor, complaint: str) -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(ShapeError, match=complaint):
        tokenizer.tokenize(frames)
    with pytest.raises(ShapeError, match=complaint):
        tokenizer(frames)


def test_one_bad_pixel_is_found(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    frames = make_frames()
    frames[1, 3, 0, 5, 5] = torch.nan
    with pytest.raises(ShapeError, match="finite"):
        make_tokenizer().tokenize(frames)


def test_a_reconstruction_needs_a_future(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    with pytest.raises(ShapeError, match="2 frames are all context; a reconstruction needs at least 3"):
        make_tokenizer()(make_frames(1, 2))


def test_refuses_tokens_of_another_model(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(ShapeError, match="35 tokens are not a whole segment"):
        tokenizer.detokenize(torch.zeros(1, 35, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"belongs\. Were these tokens made by another model"):
        tokenizer.detokenize(torch.full((1, 38), 99))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"resolution": 20}, "resolution is 20; it must be a multiple of 8"),
        ({"widths": (8, 6)}, "width 6 must be a multiple of norm_groups"),
        ({"widths": (8, 0, 8)}, r"widths.1 is 0: Input should be greater than or equal to 1"),
        ({"attention_resolution": 2}, "attention_resolution is 2; it must be at least the latent map's side, 4"),
        ({"context_levels": (8, 4)}, "levels belong to quantizer 'fsq', not 'vq'"),
        ({"quantizer": "fsq"}, "fsq needs at least one level"),
        (
            {"quantizer": "fsq", "context_levels": (8, 5), "dynamics_levels": (8, 4)},
            r"context_codes is 32; with context_levels \(8, 5\) it must be their product, 40",
        ),
        ({"context_frame": 3}, "unknown field 'context_frame'. Did you mean 'context_frames'"),
        ({"dropout": 1.5}, "dropout is 1.5: Input should be less than 1"),
    ],
)
def test_refuses_an_illegal_configuration(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        CompressiveTokenizer.from_preset("micro-16", **changes)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match=r"unknown tokenizer preset 'nano-46'\. Did you mean 'nano-64'"):
        CompressiveTokenizer.from_preset("nano-46")
