"""A slow, plain reading of the published computation, straight over the tensors of an official checkpoint.

It shares no code with the package, keeps no cache, materialises every attention matrix and treats one frame after the
other, so that agreement means that both are right. A checkpoint is its two JSON configurations and a dict of tensors.

Shapes: B videos, T frames, t context frames, F = T - t future frames, C channels, h side of the latent map, L tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Json = dict[str, Any]


class OfficialTokenizer:
    """Frames to tokens and back, one frame at a time."""

    def __init__(self, config: Json, weights: Weights) -> None:
        self.weights, self.groups = weights, config.get("norm_num_groups", 32)
        self.levels = len(config["block_out_channels"])
        self.layers: int = config["layers_per_block"]
        self.largest_attending: int = config["max_att_resolution"]
        self.patch: int = config["patch_size"]
        self.context: int = config["context_length"]
        self.context_codes: int = config["num_vq_embeddings"]
        self.dynamics_codes: int = config["num_dyn_embeddings"]

    # What the outside asks for

    def tokenize(self, frames: Tensor) -> Tensor:
        """(B,T,3,R,R) -> (B,L), the sequence written out token by token."""
        rows = []
        for video in frames:
            maps, row = self.encode_context(video)[1], list[int]()
            for j in range(self.context):
                row += [self.context_codes + self.dynamics_codes] if j > 0 else []
                row += self.nearest("quantize", self.context_vectors(video[j : j + 1])[0]).tolist()
            for j in range(self.context, len(video)):
                row.append(self.context_codes + self.dynamics_codes + 1)
                codes = self.nearest("dynamics_quantize", self.dynamics_vectors(video[j : j + 1], maps))
                row += [self.context_codes + code for code in codes.tolist()]
            rows.append(row)
        return torch.tensor(rows)

    def detokenize(self, tokens: Tensor) -> Tensor:
        """(B,L) -> (B,T,3,R,R), not clamped."""
        context_tokens, dynamics_tokens = self.tokens_a_frame(tokens.shape[1])
        videos = []
        for row in tokens.tolist():
            context, at = [], 0
            for j in range(self.context):
                at += j > 0
                context.append(self.code_vectors("quantize", row[at : at + context_tokens]))
                at += context_tokens
            future = []
            while at < len(row):
                codes = [token - self.context_codes for token in row[at + 1 : at + 1 + dynamics_tokens]]
                future.append(self.code_vectors("dynamics_quantize", codes))
                at += 1 + dynamics_tokens
            videos.append(torch.cat(self.decode(context, future)))
        return torch.stack(videos)

    def reconstruct(self, frames: Tensor) -> dict[str, Tensor]:
        """(B,T,3,R,R) -> reconstructions (B*t,3,R,R) and (B*F,3,R,R), and the two commitment losses."""
        made: dict[str, list[Tensor]] = {"context": [], "future": []}
        errors: dict[str, list[Tensor]] = {"context": [], "future": []}
        for video in frames:
            vectors, maps = self.encode_context(video)
            future = [self.dynamics_vectors(frame[None], maps) for frame in video[self.context :]]
            quantized = {"context": [], "future": []}
            for part, name, found in [
                ("context", "quantize", vectors),
                ("future", "dynamics_quantize", future),
            ]:
                for z in found:
                    q = self.code_vectors(name, self.nearest(name, z).tolist())
                    errors[part].append((q - z).square())
                    quantized[part].append(q)
            decoded = self.decode(quantized["context"], quantized["future"])
            made["context"] += decoded[: self.context]
            made["future"] += decoded[self.context :]
        # beta = 1: the pull on the encoder and the pull on the codebook have the same value.
        losses = {part: 2 * torch.stack(error).mean() for part, error in errors.items()}
        return {
            "forward_context": torch.cat(made["context"]),
            "forward_future": torch.cat(made["future"]),
            "commit_loss_context": losses["context"],
            "commit_loss_dynamics": losses["future"],
        }

    # Frames to vectors

    def encode_context(self, video: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Vectors of each context frame, and its maps after each down block: maps[block][frame] (1,C,h,h)."""
        found = [self.encoder("encoder", video[j : j + 1], None) for j in range(self.context)]
        vectors = [self.context_vectors(video[j : j + 1])[0] for j in range(self.context)]
        return vectors, [[maps[block] for _, maps in found] for block in range(self.levels)]

    def context_vectors(self, frame: Tensor) -> Tensor:
        """(1,3,R,R) -> (1, h*h, D), raster order."""
        latent = self.conv("quant_conv", self.encoder("encoder", frame, None)[0], padding=0)
        return latent.flatten(2).transpose(1, 2)

    def dynamics_vectors(self, frame: Tensor, maps: list[list[Tensor]]) -> Tensor:
        """(1,3,R,R) -> (patches, D): a patch vector runs over its rows, their columns, the channels."""
        latent, p = self.encoder("cond_encoder", frame, maps)[0][0], self.patch
        side = latent.shape[-1] // p
        vectors = []
        for row in range(side):
            for column in range(side):
                patch = latent[:, row * p : row * p + p, column * p : column * p + p]
                vectors.append(patch.permute(1, 2, 0).reshape(-1))
        return self.linear("quant_linear", torch.stack(vectors))

    def nearest(self, name: str, vectors: Tensor) -> Tensor:
        """(N,D) -> (N,) codes."""
        codebook = self.weights[f"{name}.embedding.weight"]
        return torch.stack([(codebook - z).square().sum(1).argmin() for z in vectors])

    def code_vectors(self, name: str, codes: list[int]) -> Tensor:
        """N codes -> (N,D)."""
        return self.weights[f"{name}.embedding.weight"][codes]

    # Vectors to frames

    def decode(self, context: list[Tensor], future: list[Tensor]) -> list[Tensor]:
        """Quantized vectors of each frame -> frames (1,3,R,R): first the context, then the future."""
        frames, maps = [], []
        for vectors in context:
            side = math.isqrt(len(vectors))
            latent = self.conv("post_quant_conv", vectors.T.reshape(1, -1, side, side), padding=0)
            frame, found = self.decoder("decoder", latent, None)
            frames.append(frame)
            maps.append(found)
        places = [[found[place] for found in maps] for place in range(len(maps[0]))]
        for vectors in future:
            latent = self.unpatch(self.linear("post_quant_linear", vectors))
            frames.append(self.decoder("cond_decoder", latent, places)[0])
        return frames

    def unpatch(self, vectors: Tensor) -> Tensor:
        """(patches, p*p*C) -> (1,C,h,h)."""
        p, side = self.patch, math.isqrt(len(vectors))
        latent = vectors.new_zeros(vectors.shape[1] // p**2, side * p, side * p)
        for i, vector in enumerate(vectors):
            top, left = (i // side) * p, (i % side) * p
            latent[:, top : top + p, left : left + p] = vector.reshape(p, p, -1).permute(2, 0, 1)
        return latent[None]

    # Networks

    def encoder(self, name: str, frame: Tensor, context: list[list[Tensor]] | None) -> tuple[Tensor, list[Tensor]]:
        """(1,3,R,R) -> latent (1,C,h,h) and the map after each down block, before any cross-attention."""
        x, maps, crossed = self.conv(f"{name}.conv_in", frame), [], 0
        for i in range(self.levels):
            for j in range(self.layers):
                x = self.residual(f"{name}.down_blocks.{i}.resnets.{j}", x)
            if i < self.levels - 1:
                x = self.conv(f"{name}.down_blocks.{i}.downsamplers.0.conv", F.pad(x, (0, 1, 0, 1)), 2, 0)
            maps.append(x)
            if context is not None and x.shape[-1] <= self.largest_attending:
                x = self.cross_attention(f"{name}.cross_att_blocks.{crossed}", x, context[i])
                crossed += 1
        x = self.middle(f"{name}.mid_block", x)
        return self.conv(f"{name}.conv_out", F.silu(self.norm(f"{name}.conv_norm_out", x))), maps

    def decoder(self, name: str, latent: Tensor, context: list[list[Tensor]] | None) -> tuple[Tensor, list[Tensor]]:
        """Latent (1,C,h,h) -> frame (1,3,R,R) and the maps after the middle and after each up block."""
        x = self.middle(f"{name}.mid_block", self.conv(f"{name}.conv_in", latent))
        maps = [x]
        if context is not None:
            x = self.cross_attention(f"{name}.cross_att_blocks.0", x, context[0])
        for i in range(self.levels):
            for j in range(self.layers + 1):
                x = self.residual(f"{name}.up_blocks.{i}.resnets.{j}", x)
            if i < self.levels - 1:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(f"{name}.up_blocks.{i}.upsamplers.0.conv", x)
            maps.append(x)
            if context is not None and x.shape[-1] <= self.largest_attending:
                x = self.cross_attention(f"{name}.cross_att_blocks.{i + 1}", x, context[i + 1])
        return self.conv(f"{name}.conv_out", F.silu(self.norm(f"{name}.conv_norm_out", x))), maps

    def residual(self, name: str, x: Tensor) -> Tensor:
        y = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        y = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", y)))
        if f"{name}.conv_shortcut.weight" in self.weights:
            x = self.conv(f"{name}.conv_shortcut", x, padding=0)
        return x + y

    def middle(self, name: str, x: Tensor) -> Tensor:
        x = self.residual(f"{name}.resnets.0", x)
        if f"{name}.attentions.0.to_q.weight" in self.weights:
            x = self.self_attention(f"{name}.attentions.0", x)
        return self.residual(f"{name}.resnets.1", x)

    def self_attention(self, name: str, x: Tensor) -> Tensor:
        rows = self.norm(f"{name}.group_norm", x)[0].flatten(1).T  # (h*h, C)
        q, k, v = (self.linear(f"{name}.to_{part}", rows) for part in "qkv")
        attended = torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=1) @ v
        return x + self.linear(f"{name}.to_out.0", attended).T.reshape(x.shape)

    def cross_attention(self, name: str, z: Tensor, context: list[Tensor]) -> Tensor:
        """`SiLU(z + MHA(...))` of one frame to the maps of all context frames, stacked along the height."""
        w = self.weights
        stacked = torch.cat(context, dim=2)  # (1, C, t*h, w)
        rows = self.norm(f"{name}.q_norm", z, 1e-5)[0].flatten(1).T + w[f"{name}.q_pos_emb"]
        other = self.norm(f"{name}.kv_norm", stacked, 1e-5)[0].flatten(1).T + w[f"{name}.kv_pos_emb"]
        weight, bias = w[f"{name}.att.in_proj_weight"].chunk(3), w[f"{name}.att.in_proj_bias"].chunk(3)
        q, k, v = rows @ weight[0].T + bias[0], other @ weight[1].T + bias[1], other @ weight[2].T + bias[2]
        heads = []
        for qi, ki, vi in zip(q.chunk(4, dim=1), k.chunk(4, dim=1), v.chunk(4, dim=1), strict=True):
            heads.append(torch.softmax(qi @ ki.T / math.sqrt(qi.shape[1]), dim=1) @ vi)
        attended = self.linear(f"{name}.att.out_proj", torch.cat(heads, dim=1))
        return F.silu(z + attended.T.reshape(z.shape))

    # The smallest parts

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride, padding)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        grouped = x.reshape(len(x), self.groups, -1)
        variance = grouped.var(dim=2, correction=0, keepdim=True)
        normal = ((grouped - grouped.mean(dim=2, keepdim=True)) / (variance + eps).sqrt()).reshape(x.shape)
        return normal * self.weights[f"{name}.weight"][:, None, None] + self.weights[f"{name}.bias"][:, None, None]

    def tokens_a_frame(self, length: int) -> tuple[int, int]:
        """Tokens of a context frame and of a future frame, told by the learned positions of the coarsest map."""
        blocks = [n for n in self.weights if n.startswith("cond_encoder") and n.endswith("q_pos_emb")]
        latent = min(len(self.weights[name]) for name in blocks)
        return latent, latent // self.patch**2


class OfficialTransformer:
    """LLaMA over whole sequences, one row, one layer and one head at a time."""

    def __init__(self, config: Json, weights: Weights) -> None:
        self.weights = {name.removeprefix("llm."): tensor for name, tensor in weights.items()}
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.eps: float = config["rms_norm_eps"]
        self.base: float = config["rope_parameters"]["rope_theta"]

    def predict(self, tokens: Tensor, slot: int, actions: Tensor | None, context: int) -> dict[str, Tensor]:
        """(B,L) tokens, the id of S2, (B,T,A) actions, t -> logits (B,L,V) and, with a head, reward_pred (B,F,1)."""
        logits, rewards = [], []
        for i, row in enumerate(tokens):
            x = self.weights["model.embed_tokens.weight"][row].clone()
            slots = [at for at, token in enumerate(row.tolist()) if token == slot]
            for j, at in enumerate(slots):
                if actions is not None:
                    x[at] += self.linear("action_linear", actions[i, context - 1 + j])
            x = self.hidden(x)
            logits.append(x @ self.weights["lm_head.weight"].T)
            if "reward_linear.weight" in self.weights:
                last_tokens = [at - 1 for at in [*slots[1:], len(row)]]
                rewards.append(torch.stack([self.linear("reward_linear", x[at]) for at in last_tokens]))
        found = {"logits": torch.stack(logits)}
        return found | ({"reward_pred": torch.stack(rewards)} if rewards else {})

    def hidden(self, x: Tensor) -> Tensor:
        """(L,H) -> (L,H), after the final norm."""
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            x = x + self.attention(f"{layer}.self_attn", self.norm(f"{layer}.input_layernorm", x))
            y = self.norm(f"{layer}.post_attention_layernorm", x)
            gate, up = self.matrix(f"{layer}.mlp.gate_proj", y), self.matrix(f"{layer}.mlp.up_proj", y)
            x = x + self.matrix(f"{layer}.mlp.down_proj", gate * torch.sigmoid(gate) * up)
        return self.norm("model.norm", x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        heads = []
        q, k, v = (self.matrix(f"{name}.{part}_proj", x).chunk(self.heads, dim=1) for part in "qkv")
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        for i in range(self.heads):
            scores = self.rotated(q[i]) @ self.rotated(k[i]).T / math.sqrt(q[i].shape[1])
            heads.append(torch.softmax(scores.masked_fill(future, -math.inf), dim=1) @ v[i])
        return self.matrix(f"{name}.o_proj", torch.cat(heads, dim=1))

    def rotated(self, x: Tensor) -> Tensor:
        """Channel i and channel i + D/2 of position p turn together, by p / base^(2i/D)."""
        half = x.shape[1] // 2
        turned = torch.empty_like(x)
        for i in range(half):
            angle = torch.arange(len(x)) / self.base ** (2 * i / x.shape[1])
            turned[:, i] = x[:, i] * angle.cos() - x[:, i + half] * angle.sin()
            turned[:, i + half] = x[:, i + half] * angle.cos() + x[:, i] * angle.sin()
        return turned

    def norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + self.eps).sqrt() * self.weights[f"{name}.weight"]

    def matrix(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]


def labels_of(tokens: Tensor, slot: int) -> Tensor:
    """-100 up to and including the first S2, the token elsewhere."""
    rows = []
    for row in tokens.tolist():
        first = row.index(slot)
        rows.append([-100] * (first + 1) + row[first + 1 :])
    return torch.tensor(rows)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the labelled tokens, each predicted from the position before it."""
    losses = [
        -torch.log_softmax(logits[b, i - 1], dim=0)[int(labels[b, i])]
        for b in range(len(labels))
        for i in range(1, labels.shape[1])
        if labels[b, i] >= 0
    ]
    return torch.stack(losses).mean()
