"""Fused attention against attention weights written out, and positions for other numbers of context frames."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ivideogpt.errors import ShapeError
from ivideogpt.tokenizer.blocks import SelfAttention
from ivideogpt.tokenizer.cross_attention import CrossAttention, place_code, resize_context_position

CHANNELS, SIZE, HEADS, GROUPS = 8, 4, 2, 4


def make_attention(context_frames: int, dropout: float = 0.0) -> CrossAttention:
    torch.manual_seed(0)
    attention = CrossAttention(CHANNELS, SIZE, context_frames, HEADS, GROUPS, dropout)
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return attention.eval()


def written_out(attention: CrossAttention, z: Tensor, maps: Tensor) -> Tensor:
    """One future map (C,H,W) and its context maps (t,C,H,W), with every attention weight in memory."""
    stacked = torch.cat(list(maps), dim=1)  # (C, t*H, W)
    norms = (attention.query_norm, z), (attention.context_norm, stacked)
    rows, other = (F.group_norm(x[None], GROUPS, norm.weight, norm.bias, eps=1e-5)[0].flatten(1).T for norm, x in norms)
    rows, other = rows + attention.query_position, other + attention.context_position
    parts = zip(attention.projection.weight.chunk(3), attention.projection.bias.chunk(3), strict=True)
    (wq, bq), (wk, bk), (wv, bv) = parts
    heads = [
        torch.softmax(q @ k.T / math.sqrt(CHANNELS // HEADS), dim=1) @ v
        for q, k, v in zip(
            (rows @ wq.T + bq).chunk(HEADS, dim=1),
            (other @ wk.T + bk).chunk(HEADS, dim=1),
            (other @ wv.T + bv).chunk(HEADS, dim=1),
            strict=True,
        )
    ]
    return F.silu(z + attention.output(torch.cat(heads, dim=1)).T.reshape(z.shape))


@pytest.mark.parametrize("context_frames", [1, 2, 3])
@pytest.mark.parametrize("future", [1, 3])
def test_equals_its_formula(context_frames: int, future: int) -> None:
    attention = make_attention(context_frames)
    z = torch.randn(2, future, CHANNELS, SIZE, SIZE)
    maps = torch.randn(2, context_frames, CHANNELS, SIZE, SIZE)
    made = attention(z.flatten(0, 1), attention.keys_values(maps))
    expected = [written_out(attention, z[b, j], maps[b]) for b in range(2) for j in range(future)]
    torch.testing.assert_close(made, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_every_parameter_matters() -> None:
    attention = make_attention(2)
    maps = torch.randn(1, 2, CHANNELS, SIZE, SIZE)
    attention(torch.randn(2, CHANNELS, SIZE, SIZE), attention.keys_values(maps)).square().sum().backward()
    key_bias = slice(CHANNELS, 2 * CHANNELS)  # adds the same to every score of a query: softmax takes no notice
    for name, weight in attention.named_parameters():
        if name == "projection.bias":
            weight.grad[key_bias] = 1
        assert (weight.grad != 0).all(), name


def test_positions_start_at_zero_and_biases_too() -> None:
    attention = CrossAttention(CHANNELS, SIZE, 3, HEADS, GROUPS, 0.1)
    assert attention.query_position.shape == (SIZE * SIZE, CHANNELS)
    assert attention.context_position.shape == (3 * SIZE * SIZE, CHANNELS)
    for weight in (attention.query_position, attention.context_position, attention.projection.bias):
        assert not weight.any()


def test_dropout_only_in_training() -> None:
    attention = make_attention(1, dropout=0.5)
    z, maps = torch.randn(2, CHANNELS, SIZE, SIZE), torch.randn(2, 1, CHANNELS, SIZE, SIZE)
    context = attention.keys_values(maps)
    assert torch.equal(attention(z, context), attention(z, context))
    attention.train()
    assert not torch.equal(attention(z, context), attention(z, context))


def test_self_attention_equals_its_formula() -> None:
    torch.manual_seed(0)
    block = SelfAttention(CHANNELS, GROUPS)
    x = torch.randn(2, CHANNELS, SIZE, SIZE)

    def frames() -> Iterator[Tensor]:
        for frame in x:
            normed = F.group_norm(frame[None], GROUPS, block.norm.weight, block.norm.bias, eps=1e-6)
            rows = normed[0].flatten(1).T
            scores = block.query(rows) @ block.key(rows).T / math.sqrt(CHANNELS)
            attended = block.output(torch.softmax(scores, dim=1) @ block.value(rows))
            yield frame + attended.T.reshape(frame.shape)

    torch.testing.assert_close(block(x), torch.stack(list(frames())))


@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 2), (2, 2), (1, 3), (2, 4)])
def test_resized_positions_keep_the_newest_frames(old: int, new: int) -> None:
    position = torch.randn(old * 6, CHANNELS)
    resized = resize_context_position(position, old, new)
    assert resized.shape == (new * 6, CHANNELS)
    kept = min(old, new)
    assert torch.equal(resized[-kept * 6 :], position[-kept * 6 :])
    for added in resized.split(6)[: new - kept]:
        assert torch.equal(added, position[:6]), "an added frame, older than all, begins as the oldest"
    resized.zero_()
    assert position.all(), "a copy"


def test_no_context_frame_is_refused() -> None:
    with pytest.raises(ShapeError, match="context_frames is 0; it must be at least 1"):
        resize_context_position(torch.zeros(6, CHANNELS), 1, 0)


# Starting near


def attention_weights(attention: CrossAttention, z: Tensor, maps: Tensor) -> Tensor:
    """(B,C,H,W) with (B,t,C,H,W) -> (B, heads, t, HW, HW): of every context frame, query before key."""
    keys, _ = attention.keys_values(maps)
    rows = attention.query_norm(z).flatten(2).transpose(1, 2) + attention.query_position
    queries = F.linear(rows, *(x[: z.shape[1]] for x in (attention.projection.weight, attention.projection.bias)))
    queries = queries.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
    scores = queries @ keys.mT / math.sqrt(queries.shape[-1])
    return scores.softmax(-1).unflatten(-1, (maps.shape[1], -1)).transpose(2, 3)


@pytest.mark.parametrize(
    ("channels", "size", "heads", "share"),
    [
        *[(64, 8, 4, 0.6), (64, 16, 4, 0.6), (96, 8, 4, 0.6), (96, 16, 4, 0.6), (512, 16, 4, 0.6), (768, 32, 4, 0.6)],
        *[(16, 4, 1, 0.6), (32, 16, 4, 0.2)],  # fewer waves
    ],
)
def test_near_every_place_looks_at_itself_in_the_newest_frame(
    channels: int, size: int, heads: int, share: float
) -> None:
    torch.manual_seed(0)
    attention = CrossAttention(channels, size, 2, heads, 8, 0.0)
    z, maps = torch.randn(2, channels, size, size), torch.randn(2, 2, channels, size, size)
    before = attention_weights(attention, z, maps)[:, :, 1].diagonal(dim1=-2, dim2=-1).mean()
    attention.look_near()
    weights = attention_weights(attention, z, maps)
    own = weights.diagonal(dim1=-2, dim2=-1).mean(dim=(0, 1, 3))  # (t,)
    assert own[1] > share and own[1] > 2 * own[0]
    assert own[1] > 15 * before


def test_near_in_heads_too_narrow_for_places_adds_the_mean() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 8, 2, 4, 4, 0.0)  # heads of two channels
    attention.look_near()
    assert not attention.query_position.any() and not attention.context_position.any()
    z, maps = torch.randn(1, 8, 8, 8), torch.randn(1, 2, 8, 8, 8)
    weights = attention_weights(attention, z, maps)
    assert weights.min() > 0 and weights.max() < 0.2


@pytest.mark.parametrize(("channels", "heads"), [(64, 4), (16, 1)])
def test_near_adds_what_is_seen_but_for_the_places(channels: int, heads: int) -> None:
    torch.manual_seed(0)
    size, groups = 8, 8
    attention = CrossAttention(channels, size, 1, heads, groups, 0.0)
    attention.look_near()
    z, maps = torch.randn(1, channels, size, size), torch.randn(1, 1, channels, size, size)
    with torch.no_grad():
        added = attention(torch.full_like(z, 50.0), attention.keys_values(maps)) - 50  # there SiLU is the identity
    seen = F.group_norm(maps[0], groups)
    likeness = F.cosine_similarity(added.flatten(1), seen.flatten(1))
    assert likeness > 0.5  # up to half of the channels tell places


def test_starting_from_zero_forgets_the_places() -> None:
    attention = make_attention(2)
    attention.look_near()
    attention.reset_parameters()
    assert not attention.query_position.any() and not attention.context_position.any()


@pytest.mark.parametrize("waves", [1, 2, 4])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_places_code_is_most_like_itself(size: int, waves: int) -> None:
    code = place_code(size, waves)
    likeness = code @ code.T
    torch.testing.assert_close(likeness.diagonal(), torch.full((size**2,), 2.0 * waves))
    others = likeness - torch.diag(torch.full((size**2,), torch.inf))
    if waves > 1:
        assert others.max() < 2 * waves - 0.25
