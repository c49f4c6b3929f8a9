"""The public names against the published computation: stored vectors, and the slow reference at other sizes.

Tokens are the same, images and logits within 1e-4, losses within 1e-5.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ivideogpt import WorldModel
from tests.reference.checkpoints import (
    made_up,
    made_up_actions,
    made_up_frames,
    tokenizer_config,
    tokenizer_shapes,
    transformer_config,
    transformer_shapes,
    write_official,
)
from tests.reference.official import OfficialTokenizer, OfficialTransformer, labels_of, loss_of

# What is assumed of them is tested in test_published.py.
pytestmark = pytest.mark.filterwarnings("ignore:model .* is in the official layout")

VECTORS = sorted((Path(__file__).parent / "vectors").glob("*.safetensors"))
PICTURE, LOSS = {"atol": 1e-4, "rtol": 0.0}, {"atol": 1e-5, "rtol": 0.0}


@dataclass(frozen=True)
class Stored:
    """A checkpoint in the official layout, loaded, with what it must compute."""

    model: WorldModel
    expected: dict[str, Tensor]

    @property
    def frames(self) -> Tensor:
        return self.expected["frames"]


@pytest.fixture(scope="module", params=VECTORS, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    expected = load_file(request.param)
    with safe_open(request.param, "pt") as file:
        about = json.loads(file.metadata()["about"])
    weights = made_up(tokenizer_shapes(about["tokenizer"]), about["seed"])
    shapes = transformer_shapes(about["transformer"], about["action_dim"], about["reward"])
    transformer_weights = made_up(shapes, about["seed"])
    total = sum(float(w.double().sum()) for w in [*weights.values(), *transformer_weights.values()])
    assert total == pytest.approx(float(expected["weights_sum"])), "the made-up weights are not those of the vectors"
    folder = tmp_path_factory.mktemp("official") / "model"
    write_official(folder, (about["tokenizer"], weights), (about["transformer"], transformer_weights))
    return Stored(WorldModel.from_pretrained(folder), expected)


def test_there_are_vectors_and_they_are_small() -> None:
    assert len(VECTORS) == 3
    assert sum(path.stat().st_size for path in VECTORS) < 600_000


def test_tokens(stored: Stored) -> None:
    assert torch.equal(stored.model.tokenizer.tokenize(stored.frames), stored.expected["tokens"])
    assert torch.equal(stored.model.tokenizer.tokenize(stored.frames.float() / 255), stored.expected["tokens"])


def test_labels(stored: Stored) -> None:
    assert torch.equal(stored.model.tokenizer.layout.labels(stored.expected["tokens"]), stored.expected["labels"])


def test_detokenized(stored: Stored) -> None:
    expected = stored.expected["detokenized"]
    video = stored.model.tokenizer.detokenize(stored.expected["tokens"])
    torch.testing.assert_close(video, expected.clamp(0, 1), **PICTURE)
    context_codes, dynamics_codes = stored.model.tokenizer.layout.split(stored.expected["tokens"])
    with torch.no_grad():
        context = stored.model.tokenizer.decode_context(context_codes)
        future = stored.model.tokenizer.decode_future(dynamics_codes, context)
    torch.testing.assert_close(torch.cat([context.frames, future], dim=1), expected, **PICTURE)


@torch.no_grad()
def test_reconstruction(stored: Stored) -> None:
    made = stored.model.tokenizer(stored.frames)
    torch.testing.assert_close(made.context.flatten(0, 1), stored.expected["forward_context"], **PICTURE)
    torch.testing.assert_close(made.future.flatten(0, 1), stored.expected["forward_future"], **PICTURE)
    torch.testing.assert_close(made.commitment_context, stored.expected["commit_loss_context"], **LOSS)
    torch.testing.assert_close(made.commitment_dynamics, stored.expected["commit_loss_dynamics"], **LOSS)


@torch.no_grad()
def test_predictions(stored: Stored) -> None:
    tokens = stored.expected["tokens"]
    out = stored.model.transformer(tokens, actions=stored.expected.get("actions"))
    torch.testing.assert_close(out.logits, stored.expected["logits"], **PICTURE)
    labels = stored.model.tokenizer.layout.labels(tokens)
    loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, stored.expected["loss"], **LOSS)
    if "reward_pred" in stored.expected:
        torch.testing.assert_close(out.rewards, stored.expected["reward_pred"][..., 0], **LOSS)
    else:
        assert out.rewards is None


@dataclass(frozen=True)
class Variation:
    """Another size of model, computed by the reference on the spot."""

    frames: int
    tokenizer: dict[str, Any]
    transformer: dict[str, Any] = field(default_factory=dict)
    action_dim: int | None = None
    reward: bool = False


VARIATIONS = {
    # Five levels as at 256 pixels; a latent map of 4 with attention up to 16: three places in the decoder.
    "five-levels-ctx3": Variation(
        frames=5,
        tokenizer={
            "block_out_channels": [32, 32, 32, 64, 64],
            "context_length": 3,
            "max_att_resolution": 16,
            "patch_size": 2,
            "resolution": 64,
        },
        action_dim=5,
        reward=True,
    ),
    "one-patch-a-frame": Variation(
        frames=3,
        tokenizer={"block_out_channels": [32, 32, 32, 32], "max_att_resolution": 4, "resolution": 32},
        transformer={"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1},
        reward=True,
    ),
    "one-level-ctx1": Variation(
        frames=3,
        tokenizer={"block_out_channels": [64], "context_length": 1, "resolution": 8, "layers_per_block": 2},
        action_dim=2,
    ),
    "many-codes-ctx4": Variation(
        frames=5,
        tokenizer={"context_length": 4, "num_vq_embeddings": 300, "num_dyn_embeddings": 17, "latent_channels": 3},
        transformer={"rope_parameters": {"rope_theta": 50_000.0, "rope_type": "default"}, "rms_norm_eps": 1e-4},
        action_dim=1,
    ),
}


@pytest.mark.parametrize("name", VARIATIONS)
@torch.no_grad()
def test_other_sizes(name: str, tmp_path: Path) -> None:
    case = VARIATIONS[name]
    config = tokenizer_config(**case.tokenizer)
    llama = transformer_config(config, **case.transformer)
    weights, llama_weights = (
        made_up(tokenizer_shapes(config), seed=11),
        made_up(transformer_shapes(llama, case.action_dim, case.reward), seed=12),
    )
    write_official(tmp_path / "model", (config, weights), (llama, llama_weights))
    model = WorldModel.from_pretrained(tmp_path / "model")
    frames = made_up_frames((2, case.frames, 3, config["resolution"], config["resolution"]), seed=13)
    actions = None
    if case.action_dim is not None:
        actions = made_up_actions((2, case.frames, case.action_dim), seed=14)

    reference = OfficialTokenizer(config, weights)
    tokens = reference.tokenize(frames.float() / 255)
    assert torch.equal(model.tokenizer.tokenize(frames), tokens)
    expected = reference.detokenize(tokens).clamp(0, 1)
    torch.testing.assert_close(model.tokenizer.detokenize(tokens), expected, **PICTURE)
    _compare_reconstruction(model, reference, frames.float() / 255)

    slot = llama["vocab_size"] - 1
    predicted = OfficialTransformer(llama, llama_weights).predict(tokens, slot, actions, config["context_length"])
    out = model.transformer(tokens, actions)
    torch.testing.assert_close(out.logits, predicted["logits"], **PICTURE)
    labels = model.tokenizer.layout.labels(tokens)
    assert torch.equal(labels, labels_of(tokens, slot))
    loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, loss_of(predicted["logits"], labels), **LOSS)
    assert (out.rewards is None) == (not case.reward)
    if out.rewards is not None:
        torch.testing.assert_close(out.rewards, predicted["reward_pred"][..., 0], **LOSS)


def _compare_reconstruction(model: WorldModel, reference: OfficialTokenizer, frames: Tensor) -> None:
    made, expected = model.tokenizer(frames), reference.reconstruct(frames)
    torch.testing.assert_close(made.context.flatten(0, 1), expected["forward_context"], **PICTURE)
    torch.testing.assert_close(made.future.flatten(0, 1), expected["forward_future"], **PICTURE)
    torch.testing.assert_close(made.commitment_context, expected["commit_loss_context"], **LOSS)
    torch.testing.assert_close(made.commitment_dynamics, expected["commit_loss_dynamics"], **LOSS)
