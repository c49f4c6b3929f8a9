"""Where tokens, slots, actions and rewards sit: the official numbers, and properties of every layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ivideogpt import TokenLayout
from ivideogpt.errors import ConfigError, ShapeError
from ivideogpt.sequence import IGNORED

OFFICIAL = TokenLayout()
SMALL = TokenLayout(context_frames=2, context_tokens=3, dynamics_tokens=2, context_codes=10, dynamics_codes=5)


@st.composite
def layouts(draw: st.DrawFn) -> TokenLayout:
    goal = draw(st.booleans())
    return TokenLayout(
        context_frames=draw(st.integers(1 + goal, 5)),
        context_tokens=draw(st.integers(1, 20)),
        dynamics_tokens=draw(st.integers(1, 9)),
        context_codes=draw(st.integers(1, 50)),
        dynamics_codes=draw(st.integers(1, 50)),
        goal=goal,
    )


futures = st.integers(0, 6)


def any_layout(test: Callable[..., None]) -> Callable[..., None]:
    return settings(deadline=None)(given(layout=layouts(), future=futures)(test))


def random_codes(layout: TokenLayout, future: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(future)
    context_shape = (batch, layout.context_frames, layout.context_tokens)
    dynamics_shape = (batch, future, layout.dynamics_tokens)
    return (
        torch.randint(layout.context_codes, context_shape, generator=generator),
        torch.randint(layout.dynamics_codes, dynamics_shape, generator=generator),
    )


def written_out(layout: TokenLayout, context: list[list[int]], dynamics: list[list[int]]) -> list[int]:
    """`[ctx] S1 [ctx] ... S2 [dyn] S2 [dyn] ...`, token by token."""
    row = []
    for j, codes in enumerate(context):
        row += [layout.context_codes + layout.dynamics_codes] * (j > 0)
        row += codes
    for codes in dynamics:
        row.append(layout.context_codes + layout.dynamics_codes + 1)
        row += [layout.context_codes + code for code in codes]
    return row


@any_layout
def test_parts_partition_the_sequence(layout: TokenLayout, future: int) -> None:
    frames = layout.context_frames + future
    parts = [
        layout.context_positions(),
        layout.context_slot_positions(),
        layout.future_slot_positions(frames),
        layout.dynamics_positions(frames),
    ]
    assert [tuple(part.shape) for part in parts] == [
        (layout.context_frames, layout.context_tokens),
        (layout.context_frames - 1,),
        (future,),
        (future, layout.dynamics_tokens),
    ]
    positions = torch.cat([part.flatten() for part in parts])
    assert positions.sort().values.tolist() == list(range(layout.length(frames)))


@any_layout
def test_lengths_and_frames_are_inverse(layout: TokenLayout, future: int) -> None:
    frames = layout.context_frames + future
    assert layout.frames(layout.length(frames)) == frames


@any_layout
def test_only_whole_segments_have_a_length(layout: TokenLayout, future: int) -> None:
    whole = {layout.length(layout.context_frames + f) for f in range(future + 2)}
    for length in range(layout.length(layout.context_frames + future + 1)):
        if length not in whole:
            with pytest.raises(ShapeError, match=f"{length} tokens are not a whole segment"):
                layout.frames(length)


@any_layout
def test_assemble_writes_the_sequence_of_the_paper(layout: TokenLayout, future: int) -> None:
    context, dynamics = random_codes(layout, future)
    tokens = layout.assemble(context, dynamics)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [
        written_out(layout, c, d) for c, d in zip(context.tolist(), dynamics.tolist(), strict=True)
    ]


@any_layout
def test_split_is_the_inverse_of_assemble(layout: TokenLayout, future: int) -> None:
    context, dynamics = random_codes(layout, future)
    again = layout.split(layout.assemble(context, dynamics))
    assert torch.equal(again[0], context)
    assert torch.equal(again[1], dynamics)


@any_layout
def test_each_kind_of_token_has_its_own_ids(layout: TokenLayout, future: int) -> None:
    ids = [
        *range(layout.context_codes),
        *layout.dynamics_ids,
        layout.context_slot,
        layout.future_slot,
    ]
    assert ids == list(range(layout.vocabulary))


@any_layout
def test_actions_and_rewards_sit_at_the_ends_of_their_frame(layout: TokenLayout, future: int) -> None:
    frames = layout.context_frames + future
    tokens = layout.assemble(*random_codes(layout, future))[0].tolist()
    slots = [i for i, token in enumerate(tokens) if token == layout.future_slot]
    assert layout.action_positions(frames).tolist() == slots
    assert layout.reward_positions(frames).tolist() == [i - 1 for i in [*slots, len(tokens)][1:]]
    # a_j is taken at frame j, on the way to frame j + 1.
    assert [j + 1 for j in layout.action_frames(frames)] == list(range(layout.context_frames, frames))


@any_layout
def test_every_frame_has_the_same_places(layout: TokenLayout, future: int) -> None:
    places = layout.places(layout.context_frames + future).tolist()
    context = list(range(layout.context_tokens))
    s1, s2 = layout.place_count - 2, layout.place_count - 1
    expected = context + (layout.context_frames - 1) * [s1, *context] + future * [s2, *layout.dynamics_places]
    assert places == expected
    assert sorted({*context, *layout.dynamics_places, s1, s2}) == list(range(layout.place_count))


@any_layout
def test_labels_begin_after_the_first_slot(layout: TokenLayout, future: int) -> None:
    tokens = layout.assemble(*random_codes(layout, future))
    labels = layout.labels(tokens)
    context = min(layout.prefix_length + 1, tokens.shape[1])
    assert (labels[:, :context] == IGNORED).all()
    assert torch.equal(labels[:, context:], tokens[:, context:])


@settings(deadline=None)
@given(layout=layouts(), future=st.integers(1, 6), real=st.integers(0, 6))
def test_labels_leave_padding_out(layout: TokenLayout, future: int, real: int) -> None:
    frames, real = layout.context_frames + future, min(real, future)
    tokens = layout.assemble(*random_codes(layout, future))
    mask = torch.ones(2, frames, dtype=torch.bool)
    mask[1, layout.context_frames + real :] = False
    before = tokens.clone()
    labels, plain = layout.labels(tokens, mask), layout.labels(tokens)
    end = layout.length(layout.context_frames + real)
    assert torch.equal(labels[0], plain[0])
    assert torch.equal(labels[1, :end], plain[1, :end])
    assert (labels[1, end:] == IGNORED).all(), "the slot of a padded frame is not trained on either"
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("t", [1, 2, 3])
@pytest.mark.parametrize("future", [1, 10, 14])
def test_official_length(t: int, future: int) -> None:
    layout = dataclasses.replace(OFFICIAL, context_frames=t)
    assert layout.length(t + future) == 257 * t - 1 + 17 * future


def test_official_ids() -> None:
    assert (OFFICIAL.context_slot, OFFICIAL.future_slot, OFFICIAL.vocabulary) == (16_384, 16_385, 16_386)
    assert OFFICIAL.dynamics_ids == range(8_192, 16_384)


def test_official_positions() -> None:
    assert OFFICIAL.context_slot_positions().tolist() == [256]
    assert OFFICIAL.context_positions()[1].tolist() == list(range(257, 513))
    assert OFFICIAL.future_slot_positions(16).tolist() == [513 + 17 * k for k in range(14)]
    assert OFFICIAL.dynamics_positions(16)[-1].tolist() == list(range(735, 751))
    assert OFFICIAL.length(16) == 751
    assert OFFICIAL.action_positions(16).tolist() == [513 + 17 * k for k in range(14)]
    assert list(OFFICIAL.action_frames(16)) == list(range(1, 15))
    assert OFFICIAL.reward_positions(16).tolist() == [529 + 17 * k for k in range(14)]


def test_goal_comes_first() -> None:
    layout = TokenLayout(context_frames=2, goal=True)
    assert layout.frame_order(16) == [15, *range(16)]
    assert len(layout.frame_order(16)) == 17
    assert layout.length(17) == 257 * 2 - 1 + 17 * 15
    # In the sequence [goal, o1, o2, ...] the first action used is that of o1.
    assert [layout.frame_order(16)[j] for j in layout.action_frames(17)] == list(range(15))
    assert TokenLayout(context_frames=2).frame_order(3) == [0, 1, 2]


@pytest.mark.parametrize(
    "field", ["context_frames", "context_tokens", "dynamics_tokens", "context_codes", "dynamics_codes"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_must_be_positive(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}; it must be at least 1"):
        TokenLayout(**{field: value})


def test_a_goal_needs_an_observed_frame() -> None:
    with pytest.raises(ConfigError, match="context_frames is 1 with a goal"):
        TokenLayout(context_frames=1, goal=True)


def test_fewer_frames_than_context() -> None:
    with pytest.raises(ShapeError, match="1 frames are fewer than the 2 context frames"):
        OFFICIAL.length(1)


@pytest.mark.parametrize(
    ("position", "token", "complaint"),
    [
        (0, -1, r"context token lies outside its codebook: codes -1\.\.\d, legal 0\.\.9"),
        (0, 10, r"context token .* codes 0\.\.10, legal 0\.\.9"),
        (8, 9, r"dynamics token lies outside its codebook: codes -1\.\.\d, legal 0\.\.4"),
        (8, 15, r"dynamics token .*\.\.5, legal 0\.\.4"),
        (3, 0, "token 0 stands where slot S1, id 15, belongs"),
        (3, 16, "token 16 stands where slot S1, id 15, belongs"),
        (7, 15, "token 15 stands where slot S2, id 16, belongs"),
    ],
)
def test_split_refuses_a_token_out_of_place(position: int, token: int, complaint: str) -> None:
    tokens = SMALL.assemble(torch.zeros(2, 2, 3, dtype=torch.int64), torch.zeros(2, 1, 2, dtype=torch.int64))
    tokens[1, position] = token
    with pytest.raises(ShapeError, match=complaint):
        SMALL.split(tokens)


def test_split_refuses_part_of_a_frame() -> None:
    tokens = SMALL.assemble(torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"12 tokens .* 7 \+ 3 x"):
        SMALL.split(tokens[:, :-1])
