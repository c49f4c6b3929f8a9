"""Tokenizing, imagining and decoding with random weights, against the reference; and one step of `pusht-64`.

Shapes: S contexts, K branches of each, R = S*K rows, T frames, t context frames, F future frames, A action size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ivideogpt.benchmarks.reference_rollout import Reference
from ivideogpt.benchmarks.timing import Case, Run, now
from ivideogpt.data.segment import fit_to_square
from ivideogpt.devices import Precision, choose_precision
from ivideogpt.envs.record import pusht_episode
from ivideogpt.inference import Imagines, InferenceModel
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.tokenizer.quantizer import VectorQuantizer
from ivideogpt.transformer import VideoTransformer
from ivideogpt.world_model import WorldModel

SIZES = {  # presets of tokenizer and transformer, and the action size
    "nano": ("nano-64", "nano", 2),
    "official": ("oxe-64", "small", 4),
    "micro": ("micro-16", "micro", 2),
}
ROLLOUTS = {  # contexts, branches of each, and whether the model has a reward head
    "one": (1, 1, False),
    "eight": (1, 8, False),
    "hundred": (1, 100, False),
    "contexts": (32, 1, True),
}
LATENCY = "latency"
LATENCY_MODEL = "pusht-64"
HORIZON = 10

_LATENCY_TURNS = 30
_LATENCY_EPISODE = 900_000
_REFERENCE_ROWS_ON_CPU = 8
_SEED = 0
_TOLERANCE = 0.01  # of a logit or pixel; float32 differs by 1e-5, TF32 on a GPU by more


class _Models(NamedTuple):
    """The same weights in the reference and in ours, in every precision, and by how much ours differs."""

    size: str
    plain: Mapping[Precision, Reference]
    ours: Mapping[Precision, InferenceModel]
    differences: Mapping[Precision, Mapping[str, float]]


def precisions_on(device: torch.device) -> list[Precision]:
    """What is measured on a device: float32, and bf16 where the hardware multiplies it."""
    return ["float32", "bf16"] if choose_precision("auto", device) == "bf16" else ["float32"]


def generation_cases(size: str, device: torch.device, precisions: Sequence[Precision]) -> Iterator[Case]:
    """Tokenizing one video, making its tokens frames again, and imagining it."""
    models = _make_models(size, device, precisions, reward=False)
    frames = _random_video(1, models.ours[precisions[0]])
    tokens = models.plain[precisions[0]].tokenizer.tokenize(frames)
    for name, given in (("tokenize", frames), ("detokenize", tokens)):
        plain, ours = (
            {p: partial(getattr(model.tokenizer, name), given) for p, model in side.items()}
            for side in (models.plain, models.ours)
        )
        for work in (*plain.values(), *ours.values()):
            work()
        described = f"{size}, 1 x ({frames.shape[1] - HORIZON} + {HORIZON}) frames"
        yield Case.against(name, described, plain, ours, facts={"differences": models.differences})
    yield _rollout(models, "one")


def rollout_cases(
    size: str, names: Sequence[str], device: torch.device, precisions: Sequence[Precision]
) -> Iterator[Case]:
    """Rows of the table `ROLLOUTS`, by name."""
    for reward in (False, True):
        chosen = [name for name in ROLLOUTS if name in names and ROLLOUTS[name][2] == reward]
        if chosen:
            models = _make_models(size, device, precisions, reward=reward)
            yield from (_rollout(models, name) for name in chosen)


def latency_case(device: torch.device, precisions: Sequence[Precision]) -> Case:
    """Steps of one session of the shipped model, those that make the newest frames the context included."""
    model = WorldModel.from_pretrained(LATENCY_MODEL, device=device)
    episode = pusht_episode(_LATENCY_EPISODE, 100)
    opening = torch.from_numpy(episode.frames[: model.layout.context_frames]).movedim(-1, 1)
    context = fit_to_square(opening, model.tokenizer.config.resolution)[None]
    actions = torch.from_numpy(episode.actions)[:, None].to(device)
    variants: dict[str, Run] = {}
    for precision in precisions:
        session = model.for_inference(precision).start(context, seed=_SEED)
        step = variants[f"ours, {precision}"] = partial(next, map(session.step, cycle(actions)))
        for _ in range(model.trained_horizon + 1):  # by then the context has changed once
            step()
    return Case(LATENCY, f"{LATENCY_MODEL}, one step with its pixels", variants, turns=_LATENCY_TURNS)


def _make_models(size: str, device: torch.device, precisions: Sequence[Precision], **changes: Any) -> _Models:
    torch.manual_seed(_SEED)
    # Without place embedding, whatever the preset says: Hugging Face's model has none.
    model = random_model(size, place_embedding=False, **changes).to(device)
    exact = Reference(model)
    worst = max(_differences(exact, model.for_inference("float32")).values())
    assert worst < _TOLERANCE, f"ours differs from the reference by {worst:g} in float32"
    plain = {name: exact if name == "float32" else Reference(model, torch.bfloat16) for name in precisions}
    ours = {name: model.for_inference(name) for name in precisions}
    return _Models(size, plain, ours, {name: _differences(exact, copy) for name, copy in ours.items()})


@torch.no_grad()
def _differences(exact: Reference, ours: InferenceModel) -> dict[str, float]:
    """How far ours is from the reference in float32, on one video and its tokens.

    Rollouts are not compared: `generate` draws from another stream of random numbers.
    """
    video, layout = _random_video(1, ours), ours.layout
    frames = video.shape[1]
    tokens, actions = exact.tokenizer.tokenize(video), _random_actions(1, frames, ours)
    # Every token is predicted from the position before it.
    positions = (layout.dynamics_positions(frames).flatten() - 1).to(tokens.device)
    legal = slice(layout.dynamics_ids.start, layout.dynamics_ids.stop)
    expected = exact.logits(tokens, actions[:, list(layout.action_frames(frames))])[:, positions, legal]
    hidden = ours.transformer.hidden_states(ours.transformer.embed(tokens, actions))[:, positions]
    pixels = ours.tokenizer.detokenize(tokens) - exact.tokenizer.detokenize(tokens)
    return {
        "largest_of_logits": float((ours.transformer.dynamics_logits(hidden) - expected).abs().max()),
        "largest_of_pixels": float(pixels.abs().max()),
        "tokens_that_differ": float((ours.tokenizer.tokenize(video) != tokens).float().mean()),
    }


def _random_video(contexts: int, model: Imagines) -> Tensor:
    """(S,t+F,3,side,side)."""
    side = model.tokenizer.config.resolution
    return torch.rand(contexts, model.layout.context_frames + HORIZON, 3, side, side, device=model.device)


def _random_actions(rows: int, frames: int, model: Imagines) -> Tensor:
    """(R,frames,A)."""
    return torch.rand(rows, frames, model.transformer.config.action_dim or 0, device=model.device) * 2 - 1


def random_model(size: str, **changes: Any) -> WorldModel:
    """A world model of a size with random weights in which every part has an effect; fields of its transformer change
    by keyword. Draws with torch's global generator."""
    names = SIZES[size]
    tokenizer = CompressiveTokenizer.from_preset(names[0])
    for quantizer in (tokenizer.context_quantizer, tokenizer.dynamics_quantizer):
        if isinstance(quantizer, VectorQuantizer):
            nn.init.normal_(quantizer.embedding.weight)  # apart, as trained codes are: rounding decides nothing
    fields = {"layout": tokenizer.layout, "action_dim": names[2], **changes}
    transformer = VideoTransformer.from_preset(names[1], **fields)
    assert transformer.action_in is not None, "it was asked for"
    nn.init.normal_(transformer.action_in.weight)  # starts at zero, where a mistake would not show
    return WorldModel(tokenizer, transformer)


def _rollout(models: _Models, name: str) -> Case:
    contexts, branches, rewards = ROLLOUTS[name]
    model = next(iter(models.ours.values()))
    context, rows = _random_video(contexts, model)[:, :-HORIZON], contexts * branches
    actions = _random_actions(rows, HORIZON, model)
    done = min(rows, _REFERENCE_ROWS_ON_CPU) if model.device.type == "cpu" else rows
    repeated = context.repeat_interleave(branches, dim=0)[:done]
    plain = {p: partial(reference.rollout, repeated, actions[:done], HORIZON) for p, reference in models.plain.items()}
    ours = {p: partial(_imagine, copy, context, branches, actions) for p, copy in models.ours.items()}
    for reference in models.plain.values():
        reference.rollout(repeated, actions[:done, :1], 1)
    for run in ours.values():
        run()
    work = f"{models.size}, {contexts} x {branches} x ({context.shape[1]} + {HORIZON}) frames"
    facts = {"frames": rows * HORIZON, "differences": models.differences}
    return Case.against(name, work + ", rewards" * rewards, plain, ours, done / rows, facts=facts)


def _imagine(model: InferenceModel, context: Tensor, branches: int, actions: Tensor) -> dict[str, float]:
    """Seconds of the parts, and the memory that the session held."""
    moments = [now(model.device)]
    with model.start(context, branches, _SEED, horizon=HORIZON) as session:
        moments.append(now(model.device))
        tokens = [session.step(actions[:, j], decode=False).tokens for j in range(HORIZON)]
        moments.append(now(model.device))
        session.decode(torch.stack(tokens, dim=1))
        moments.append(now(model.device))
        parts = zip(("start", "steps", "decode"), pairwise(moments), strict=True)
        return {**{part: after - before for part, (before, after) in parts}, "session_bytes": session.bytes}
