"""How much memory a session takes, and whether it is there.

Shapes: S contexts, R rows, t context frames.
"""

from __future__ import annotations

from ivideogpt.devices import free_memory
from ivideogpt.errors import SessionError
from ivideogpt.session.pixels import decoded_at_once
from ivideogpt.session.prefill import parts
from ivideogpt.session.slots import bucket
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer

_INT64, _FLOAT32 = 8, 4
_MORE_MAPS = 16  # of one channel, beside four of all channels: frames, and what convolutions take


def session_bytes(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, slots: int, rows: int, horizon: int
) -> int:
    """Memory that a session holds, bytes.

    Args:
        tokenizer, transformer: the model.
        slots: contexts that there is memory for.
        rows: R.
        horizon: frames imagined from one context.
    """
    if transformer.static:
        slots = rows = bucket(rows)
    return slots * slot_bytes(tokenizer, transformer) + rows * row_bytes(transformer, horizon)


def slot_bytes(tokenizer: CompressiveTokenizer, transformer: VideoTransformer) -> int:
    """Memory of a context: what the transformer has read, the decoder's features, and the frames."""
    layout, side = transformer.layout, tokenizer.config.resolution
    prefix = (layout.prefix_length - defers_last_token(transformer)) * _position_bytes(transformer)
    # The decoder's keys and values of a context are as large as its context positions.
    named = tokenizer.prediction_decoder.named_parameters()
    features = sum(2 * weight.numel() for name, weight in named if name.endswith("context_position"))
    frames = layout.context_frames * 3 * side * side
    return prefix + (features + frames) * tokenizer.context_in.weight.element_size() + _INT64


def row_bytes(transformer: VideoTransformer, horizon: int) -> int:
    """Memory of a row: its suffix, tokens and random numbers, and what is known of its states."""
    state = transformer.config.state
    known = 0 if state is None else 2 * state.features + horizon * state.size
    tokens = horizon * transformer.layout.dynamics_tokens
    suffix = suffix_length(transformer, horizon) * _position_bytes(transformer)
    return suffix + tokens * (_INT64 + _FLOAT32) + 5 * _INT64 + known * _FLOAT32


def suffix_length(transformer: VideoTransformer, horizon: int) -> int:
    """Positions that `horizon` frames take behind a context, and a context token that is read late.

    Compiled frames are also run for rows that stay where they are, and write behind their end.
    """
    return defers_last_token(transformer) + transformer.layout.frame_length * (horizon + transformer.static)


def defers_last_token(transformer: VideoTransformer) -> bool:
    """Whether a frame's last token is read together with the next slot, and not by itself for the reward."""
    return transformer.reward_head is None and not transformer.static


def prefill_bytes(tokenizer: CompressiveTokenizer, transformer: VideoTransformer, contexts: int) -> int:
    """The most memory that it takes to read so many contexts, bytes, beside the slots that they will lie in."""
    config, layout, side = transformer.config, transformer.layout, tokenizer.config.resolution
    # In the first block of the encoder, and in a feed-forward of the transformer, whose cache is full by then.
    maps = layout.context_frames * side**2 * (4 * tokenizer.config.widths[0] + _MORE_MAPS)
    positions = layout.prefix_length * 4 * (config.feed_forward + config.hidden)
    encoding = maps * tokenizer.context_in.weight.element_size()
    reading = positions * transformer.embedding.weight.element_size() + slot_bytes(tokenizer, transformer)
    part = next(parts(contexts, side, transformer.embedding.weight.device))
    return len(part) * max(encoding, reading)


def refresh_bytes(tokenizer: CompressiveTokenizer, transformer: VideoTransformer, contexts: int) -> int:
    """The most memory that it takes to decode and read as many contexts of imagined frames, bytes, as above."""
    side, device = tokenizer.config.resolution, transformer.embedding.weight.device
    frames = len(next(parts(contexts, side, device))) * transformer.layout.context_frames
    maps = side**2 * (9 * tokenizer.config.widths[0] + _MORE_MAPS)
    decoding = min(frames, decoded_at_once(side, device)) * maps * tokenizer.context_in.weight.element_size()
    return max(prefill_bytes(tokenizer, transformer, contexts), decoding + frames * side**2 * 6 * _FLOAT32)


def require_memory(transformer: VideoTransformer, needed: int, what: str) -> None:
    """Refuse what would not fit into the memory that is free.

    Args:
        transformer: says on which device.
        needed: bytes.
        what: for the message: what needs it.

    Raises:
        SessionError: with the numbers.
    """
    device = transformer.embedding.weight.device
    free = free_memory(device)
    if free is not None and needed > free:
        raise SessionError(
            f"{what} need {needed / 1e9:.2f} GB; {free / 1e9:.2f} GB are free on {device}. "
            "Take fewer rows, or a shorter horizon."
        )


def _position_bytes(transformer: VideoTransformer) -> int:
    config = transformer.config
    return 2 * config.layers * config.hidden * transformer.embedding.weight.element_size()
