"""States that the tokenizer reads and is told: from what, in which units, and at no cost to who has none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ivideogpt import CompressiveTokenizer
from ivideogpt.config import StateConfig
from ivideogpt.errors import ConfigError, ShapeError
from ivideogpt.states import decode_states, encode_states
from ivideogpt.tokenizer.losses import state_losses
from ivideogpt.tokenizer.states import DynamicsHead, FrameHead, ShownStates, StateMap, StateParts

MakeTokenizer = Callable[..., CompressiveTokenizer]
MakeFrames = Callable[..., Tensor]

POSE = StateConfig(angles=(1,), mean=(10.0, 0.0, -2.0), std=(2.0, 1.0, 0.5), change=(1.0, 0.5, 0.2))


def parts_of(tokenizer: CompressiveTokenizer) -> StateParts:
    assert tokenizer.states is not None
    return tokenizer.states


def poses(batch: int = 2, frames: int = 5, seed: int = 0) -> Tensor:
    noise = torch.randn(batch, frames, POSE.size, generator=torch.Generator().manual_seed(seed))
    return noise * torch.tensor(POSE.std) + torch.tensor(POSE.mean)


def shown_by(states: Tensor, known: Tensor | None = None) -> ShownStates:
    """What future frames show, of the states of whole videos with two frames of context."""
    return ShownStates(encode_states(states[:, 2:], POSE), known)


# The heads


@pytest.mark.parametrize("leading", [(3,), (2, 4), (2, 1, 3)])
@torch.no_grad()
def test_a_frame_is_read_by_itself(leading: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head, latent = FrameHead(channels=6, size=8, features=4), torch.randn(*leading, 6, 8, 8)
    read = head(latent)
    assert read.shape == (*leading, 4)
    alone = torch.stack([head(frame[None])[0] for frame in latent.flatten(0, -4)]).view(*leading, 4)
    torch.testing.assert_close(read, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_frame_head_tells_where_things_are(make_tokenizer: MakeTokenizer) -> None:
    head = parts_of(make_tokenizer(state=POSE)).frame
    latent = torch.zeros(2, 8, 4, 4)
    latent[0, :, 0, 1], latent[1, :, 2, 3] = 5, 5  # the same thing in two places
    one, other = head(latent)
    assert (one - other).abs().max() > 1e-3


@torch.no_grad()
def test_a_dynamics_head_begins_at_the_newest_context_frame() -> None:
    torch.manual_seed(0)
    head = DynamicsHead(inputs=4 * 6, features=3)
    vectors, newest = torch.randn(2, 5, 4, 6), torch.randn(2, 3)
    read = head(vectors, newest)
    assert read.shape == (2, 5, 3)
    torch.testing.assert_close(head(vectors[1:, 3:4], newest[1:])[0, 0], read[1, 3])
    nn.init.zeros_(head.output.weight)
    nn.init.zeros_(head.output.bias)
    assert torch.equal(head(vectors, newest), newest[:, None].expand(-1, 5, -1))


@torch.no_grad()
def test_a_map_is_made_for_each_frame_alone_and_starts_at_nothing() -> None:
    torch.manual_seed(0)
    maps, features = StateMap(features=4, size=8, channels=6), torch.randn(3, 4)
    assert not maps(features).any()
    nn.init.normal_(maps.conv4.weight)
    made = maps(features)
    assert made.shape == (3, 6, 8, 8)
    torch.testing.assert_close(maps(features[1:2])[0], made[1], atol=1e-5, rtol=1e-5)
    assert (made[0] - made[1]).abs().max() > 1e-3 and made[0].flatten(1).std(dim=1).min() > 1e-3, "places differ"


@torch.no_grad()
def test_states_that_are_withheld_add_nothing(make_tokenizer: MakeTokenizer) -> None:
    parts = parts_of(make_tokenizer(state=POSE))
    states, known = poses(3), torch.tensor([True, False, True])
    whole = [parts.for_encoder(shown_by(states)), *parts.for_decoder(shown_by(states))]
    some = [parts.for_encoder(shown_by(states, known)), *parts.for_decoder(shown_by(states, known))]
    assert [tuple(maps.shape) for maps in whole] == [(9, 16, 4, 4), (9, 16, 4, 4), (9, 16, 8, 8)]
    for every, part in zip(whole, some, strict=True):
        every[3:6] = 0
        assert torch.equal(every, part)
    assert not torch.equal(whole[0], whole[1])


# Reading


@torch.no_grad()
def test_a_reading_depends_on_its_frame_alone(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames = make_tokenizer(state=POSE), make_frames(2, 5)
    read = tokenizer.read_states(frames)
    assert read.shape == (2, 5, 3) and read.dtype == torch.float32
    for j in range(5):
        other = frames.clone()
        other[0, j] = 1 - other[0, j]
        changed = (tokenizer.read_states(other) - read).abs().amax(dim=2) > 1e-4
        assert changed.nonzero().tolist() == [[0, j]]
    shuffled = tokenizer.read_states(frames[:, [4, 2, 0, 1, 3]])
    torch.testing.assert_close(shuffled, read[:, [4, 2, 0, 1, 3]], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_states_are_read_in_their_own_units(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer = make_tokenizer(state=POSE)
    output = parts_of(tokenizer).frame.output
    output.weight.zero_()
    output.bias.copy_(torch.tensor([1.5, -2.0, 0.0, -3.0]))  # x, y, cosine and sine
    read = tokenizer.read_states((make_frames(1, 2) * 255).to(torch.uint8))
    expected = torch.tensor([10 + 1.5 * 2, -math.pi / 2, -2 - 2 * 0.5])
    torch.testing.assert_close(read, expected.expand(1, 2, 3))


@torch.no_grad()
def test_what_a_reconstruction_reads(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames = make_tokenizer(state=POSE), make_frames(2, 5)
    made = tokenizer(frames)
    assert made.frame_states.shape == (2, 5, 4) and made.dynamics_states.shape == (2, 3, 4)
    torch.testing.assert_close(decode_states(made.frame_states, POSE), tokenizer.read_states(frames))
    expected = parts_of(tokenizer).dynamics(made.dynamics_vectors, made.frame_states[:, 1])
    torch.testing.assert_close(made.dynamics_states, expected)
    frames[0, 3] = 1 - frames[0, 3]
    for name, index in (("frame_states", [0, 3]), ("dynamics_states", [0, 1])):
        changed = (getattr(tokenizer(frames), name) - getattr(made, name)).abs().amax(dim=2) > 1e-4
        assert changed.nonzero().tolist() == [index]


def test_reading_needs_states_and_whole_frames(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    with pytest.raises(ConfigError, match="this tokenizer has learned no states"):
        make_tokenizer().read_states(make_frames())
    tokenizer = make_tokenizer(state=POSE)
    with pytest.raises(ShapeError, match="1 frames are fewer than the 2 context frames"):
        tokenizer.read_states(make_frames(1, 1))
    with pytest.raises(ShapeError, match="must lie in"):
        tokenizer.read_states(make_frames() * 255)


# Being told


@torch.no_grad()
def test_encoder_and_decoder_are_told(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames, states = make_tokenizer(state=POSE), make_frames(2, 5), poses()
    untold, tokens = tokenizer.tokenize(frames), tokenizer.tokenize(frames, states)
    prefix = tokenizer.layout.prefix_length
    assert torch.equal(untold[:, :prefix], tokens[:, :prefix]), "a context is seen in full"
    assert not torch.equal(untold, tokens)
    video, blind = tokenizer.detokenize(tokens, states), tokenizer.detokenize(tokens)
    assert torch.equal(video[:, :2], blind[:, :2])
    other = states.clone()
    other[1, 3, 0] += 1
    for told, plain in ((tokenizer.detokenize(tokens, other), video), (blind, video)):
        changed = (told[:, 2:] - plain[:, 2:]).abs().amax(dim=(2, 3, 4)) > 1e-5
        assert changed.tolist() == ([[False] * 3, [False, True, False]] if told is not blind else [[True] * 3] * 2)
    other[:, :2] = 1e6  # of the context: not used
    other[1, 3, 0] -= 1
    assert torch.equal(tokenizer.detokenize(tokens, other), video)
    assert torch.equal(tokenizer.tokenize(frames, other), tokens)


@torch.no_grad()
def test_a_reconstruction_is_what_tokens_and_states_say(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames, states = make_tokenizer(state=POSE), make_frames(2, 5), poses()
    for known in (None, torch.tensor([True, False])):
        made = tokenizer(frames, shown_by(states, known))
        tokens = tokenizer.layout.assemble(made.context_codes, made.dynamics_codes)
        video = torch.cat([made.context, made.future], dim=1).clamp(0, 1)
        for b in range(2):
            told = None if known is not None and not known[b] else states[b : b + 1]
            assert torch.equal(tokenizer.tokenize(frames[b : b + 1], told)[0], tokens[b])
            expected = tokenizer.detokenize(tokens[b : b + 1], told)[0]
            torch.testing.assert_close(video[b], expected, atol=1e-5, rtol=1e-5)
    read = tokenizer.read_states(frames)
    expected = tokenizer.detokenize(tokenizer.tokenize(frames, read), read)
    assert torch.equal(tokenizer.reconstruct(frames), expected)


@torch.no_grad()
def test_tokens_may_be_withheld_from_the_decoder(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    tokenizer, frames, shown = make_tokenizer(state=POSE), make_frames(2, 5), shown_by(poses())
    dropped = torch.tensor([[True, False, False], [False, False, True]])
    made, plain = tokenizer(frames, shown, dropped), tokenizer(frames, shown)
    assert torch.equal(made.dynamics_codes, plain.dynamics_codes)
    assert torch.equal((made.future != plain.future).flatten(2).any(dim=2), dropped)
    other = frames.clone()
    other[:, 2:] = 1 - other[:, 2:]
    without = tokenizer(other, shown, dropped).future
    torch.testing.assert_close(without[dropped], made.future[dropped], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("resolution", [4, 8, 16])
@torch.no_grad()
def test_the_decoder_is_told_wherever_it_looks_at_the_context(
    make_tokenizer: MakeTokenizer, make_frames: MakeFrames, resolution: int
) -> None:
    tokenizer, frames, states = make_tokenizer(state=POSE, attention_resolution=resolution), make_frames(), poses()
    maps = parts_of(tokenizer).decoder_maps
    assert len(maps) == len(tokenizer.prediction_decoder.cross)
    tokens = tokenizer.tokenize(frames, states)
    video = tokenizer.detokenize(tokens, states)
    for part in maps:
        part.conv4.bias += 1  # type: ignore[union-attr, operator]
        other = tokenizer.detokenize(tokens, states)
        assert (other - video).abs().max() > 1e-4
        video = other


@torch.no_grad()
def test_a_new_state_changes_nothing(make_frames: MakeFrames) -> None:
    torch.manual_seed(0)
    plain = CompressiveTokenizer.from_preset("micro-16").eval()
    knowing = CompressiveTokenizer.from_preset("micro-16", state=POSE).eval()
    missing = knowing.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(name.startswith("states.") for name in missing)
    frames, tokens = make_frames(2, 5), plain.tokenize(make_frames(2, 5))
    assert torch.equal(knowing.tokenize(frames, poses()), tokens)
    assert torch.equal(knowing.detokenize(tokens, poses()), plain.detokenize(tokens))
    assert torch.equal(plain.reconstruct(frames), plain.detokenize(tokens))


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 5, 2), (5, 3)])
def test_refuses_to_be_told_what_does_not_fit(
    make_tokenizer: MakeTokenizer, make_frames: MakeFrames, shape: tuple[int, ...]
) -> None:
    tokenizer, frames = make_tokenizer(state=POSE), make_frames(2, 5)
    message = re.escape(f"states have shape {shape}; this tokenizer takes (B, T, S) = (B, 5, 3), one a frame")
    with pytest.raises(ShapeError, match=message):
        tokenizer.tokenize(frames, torch.zeros(shape))
    with pytest.raises(ShapeError, match=message):
        tokenizer.detokenize(tokenizer.tokenize(frames), torch.zeros(shape))
    with pytest.raises(ShapeError, match="states were given, but this tokenizer has learned none"):
        make_tokenizer().tokenize(frames, poses())


# Gradients


def moved(module: nn.Module) -> bool:
    return any(weight.grad is not None and bool(weight.grad.any()) for weight in module.parameters())


def test_whom_each_loss_teaches(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    features, mask, taught = encode_states(poses(), POSE), torch.ones(2, 5, dtype=torch.bool), {}
    known = torch.tensor([True, False])
    for name in ("state_frame", "state_dynamics", "residual", "pixels"):
        tokenizer = make_tokenizer(state=POSE)
        output = tokenizer(make_frames(2, 5), shown_by(poses(), known))
        losses = {**state_losses(output, features, mask, known), "pixels": output.future.square().mean()}
        losses[name].backward()
        parts = {
            "frame head": parts_of(tokenizer).frame,
            "dynamics head": parts_of(tokenizer).dynamics,
            "encoder map": parts_of(tokenizer).encoder_map,
            "decoder maps": parts_of(tokenizer).decoder_maps,
            "context encoder": tokenizer.context_encoder,
            "prediction encoder": tokenizer.prediction_encoder,
            "decoder": tokenizer.prediction_decoder,
        }
        taught[name] = {part for part, module in parts.items() if moved(module)}
    assert taught["state_frame"] == {"frame head", "context encoder"}
    # The context encoder by what the prediction encoder sees of it; not the head that said where things were.
    assert taught["state_dynamics"] == {"dynamics head", "prediction encoder", "context encoder"}
    assert taught["residual"] == {"encoder map", "prediction encoder", "context encoder"}
    assert taught["pixels"] == {"encoder map", "decoder maps", "context encoder", "prediction encoder", "decoder"}


# Who has none, and copies


@torch.no_grad()
def test_without_a_state_all_is_as_it_was(make_tokenizer: MakeTokenizer, make_frames: MakeFrames) -> None:
    knowing, plain, frames = make_tokenizer(state=POSE), make_tokenizer(), make_frames()
    assert plain.states is None and not any("state" in name for name in plain.state_dict())
    weights = {k: v for k, v in knowing.state_dict().items() if not k.startswith("states.")}
    assert list(weights) == list(plain.state_dict())
    plain.load_state_dict(weights)
    seen: dict[str, list[int]] = {"knowing": [], "plain": []}
    for name, tokenizer in (("knowing", knowing), ("plain", plain)):
        tokenizer.context_encoder.register_forward_hook(
            lambda _, inputs, __, name=name: seen[name].append(len(inputs[0]))
        )
    assert torch.equal(knowing.tokenize(frames), plain.tokenize(frames))
    assert torch.equal(knowing.detokenize(knowing.tokenize(frames)), plain.detokenize(plain.tokenize(frames)))
    assert seen["knowing"] == seen["plain"] == [4, 4], "tokens cost what they did"
    one, other = knowing(frames), plain(frames)
    assert seen == {"knowing": [4, 4, 4, 6], "plain": [4, 4, 4]}
    assert other.frame_states is None and other.dynamics_states is None
    for name in ("context", "future", "context_codes", "dynamics_codes", "dynamics_vectors", "commitment_dynamics"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("new", [1, 3])
@torch.no_grad()
def test_another_number_of_context_frames_reads_the_same(
    make_tokenizer: MakeTokenizer, make_frames: MakeFrames, new: int
) -> None:
    tokenizer, frames = make_tokenizer(state=POSE), make_frames(2, 5)
    other = tokenizer.with_context_frames(new)
    assert other.config.state == POSE
    torch.testing.assert_close(other.read_states(frames), tokenizer.read_states(frames))
    made = other(frames)
    assert made.frame_states.shape == (2, 5, 4) and made.dynamics_states.shape == (2, 5 - new, 4)


@pytest.mark.parametrize("levels", [(), (4, 8)])
@torch.no_grad()
def test_any_quantizer(make_tokenizer: MakeTokenizer, make_frames: MakeFrames, levels: tuple[int, ...]) -> None:
    kind = {"quantizer": "fsq", "context_levels": levels, "dynamics_levels": levels} if levels else {}
    made = make_tokenizer(state=POSE, **kind)(make_frames(1, 4), shown_by(poses(1, 4)))
    assert made.dynamics_states.shape == (1, 2, 4)
