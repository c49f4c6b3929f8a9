"""Write tests/vectors/*.safetensors anew: `python -m tests.reference.make_vectors`.

Each file holds inputs and what the slow reference makes of them; configurations and the seed of the weights are in its
metadata. Only needed when a case is added: the files are committed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference.checkpoints import (
    made_up,
    made_up_actions,
    made_up_frames,
    tokenizer_config,
    tokenizer_shapes,
    transformer_config,
    transformer_shapes,
)
from tests.reference.official import OfficialTokenizer, OfficialTransformer, labels_of, loss_of

VECTORS = Path(__file__).parents[1] / "vectors"


@dataclass(frozen=True)
class Case:
    """A checkpoint and a batch."""

    name: str
    batch: int
    frames: int
    seed: int
    action_dim: int | None = None
    reward: bool = False
    tokenizer: dict[str, Any] = field(default_factory=dict)
    transformer: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("ctx1-free", batch=2, frames=4, seed=1, tokenizer={"context_length": 1}),
    Case(
        "ctx3-action7-reward",
        batch=1,
        frames=6,
        seed=2,
        action_dim=7,
        reward=True,
        tokenizer={
            "block_out_channels": [32, 32, 64],
            "context_length": 3,
            "max_att_resolution": 16,
            "patch_size": 2,
            "resolution": 32,
        },
    ),
    Case(
        "ctx2-action1-attention-everywhere",
        batch=2,
        frames=5,
        seed=3,
        action_dim=1,
        tokenizer={
            "block_out_channels": [64, 32],
            "layers_per_block": 2,
            "max_att_resolution": 16,
            "mid_block_add_attention": True,
            "patch_size": 2,
        },
        transformer={
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
        },
    ),
]


class CarefulTokenizer(OfficialTokenizer):
    """Refuses a near tie between two codes, which rounding could decide either way."""

    def nearest(self, name: str, vectors: Tensor) -> Tensor:
        """(N,D) -> (N,) codes, each clearly nearer than the next."""
        distances = torch.cdist(vectors.double(), self.weights[f"{name}.embedding.weight"].double())
        two = distances.topk(2, largest=False).values
        assert ((two[:, 1] - two[:, 0]) > 1e-4).all(), "a near tie: take another seed"
        return super().nearest(name, vectors)


@torch.no_grad()
def write(case: Case) -> None:
    """Compute and save one case."""
    tokenizer = tokenizer_config(**case.tokenizer)
    transformer = transformer_config(tokenizer, **case.transformer)
    weights = made_up(tokenizer_shapes(tokenizer), case.seed)
    transformer_weights = made_up(transformer_shapes(transformer, case.action_dim, case.reward), case.seed)
    size = tokenizer["resolution"]
    frames = made_up_frames((case.batch, case.frames, 3, size, size), case.seed)
    pixels, actions = frames.float() / 255, None
    if case.action_dim is not None:
        actions = made_up_actions((case.batch, case.frames, case.action_dim), case.seed)

    all_weights = [*weights.values(), *transformer_weights.values()]

    reference = CarefulTokenizer(tokenizer, weights)
    slot = transformer["vocab_size"] - 1
    tokens = reference.tokenize(pixels)
    assert len(tokens.unique()) > 20, "a codebook that collapsed would hide mistakes: take another seed"
    predicted = OfficialTransformer(transformer, transformer_weights).predict(
        tokens, slot, actions, tokenizer["context_length"]
    )
    labels = labels_of(tokens, slot)
    found = {
        "frames": frames,
        "tokens": tokens,
        "labels": labels,
        "detokenized": reference.detokenize(tokens),
        "loss": loss_of(predicted["logits"], labels),
        **reference.reconstruct(pixels),
        **predicted,
        **({} if actions is None else {"actions": actions}),
        "weights_sum": torch.stack([w.double().sum() for w in all_weights]).sum(),
    }
    about = {"tokenizer": tokenizer, "transformer": transformer, "seed": case.seed}
    about |= {"action_dim": case.action_dim, "reward": case.reward}
    VECTORS.mkdir(exist_ok=True)
    plain = {name: tensor.contiguous() for name, tensor in found.items()}
    # One entry: safetensors writes several in any order, and the files should come out the same every time.
    save_file(plain, VECTORS / f"{case.name}.safetensors", {"about": json.dumps(about)})


if __name__ == "__main__":
    for case in CASES:
        write(case)
