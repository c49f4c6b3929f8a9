"""The world model: a tokenizer and a transformer that imagine together, one action and one frame at a time."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Literal, Self

import torch
from torch import nn

from ivideogpt import hub
from ivideogpt.config import SamplingConfig
from ivideogpt.devices import Precision, choose_device, choose_precision
from ivideogpt.errors import CheckpointError, ConfigError
from ivideogpt.inference import Imagines, InferenceModel
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer
from ivideogpt.weights import built


class WorldModel(nn.Module, Imagines):
    """A tokenizer and a transformer of the same token layout.

    Args:
        tokenizer: frames to tokens and back.
        transformer: continues the tokens.
        sampling: how tokens are drawn where nothing else is said.

    Raises:
        ConfigError: the two parts do not have the same token layout, or have learned states of different sizes.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        transformer: VideoTransformer,
        sampling: SamplingConfig | None = None,
    ) -> None:
        super().__init__()
        theirs = dataclasses.replace(transformer.layout, goal=False)
        if tokenizer.layout != theirs:
            raise ConfigError(
                f"the tokenizer writes {tokenizer.layout}, but the transformer continues {theirs}. "
                "Train the transformer on this tokenizer, or load the one it was trained on."
            )
        sizes = [part.config.state.size for part in (tokenizer, transformer) if part.config.state is not None]
        if len(set(sizes)) > 1:
            raise ConfigError(
                f"the tokenizer has learned states of {sizes[0]} numbers, the transformer of {sizes[1]}. "
                "Train the transformer on this tokenizer and the same states, or load the one it was trained on."
            )
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.sampling = sampling or SamplingConfig()
        self.eval()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.described()})"

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        goal: bool | None = None,
        trained_frames: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Load a shipped model, a local folder (native or official layout) or a Hub id.

        Args:
            name: for example `"pusht-64"`.
            goal: whether the first context frame is a goal. Native folders say it themselves and it is known of the
                published ids; for other folders in the official layout say it here, or there is none, with a warning.
            trained_frames: frames T of the sequences it was trained on, context and goal included; known as `goal` is,
                or else 16 (17 with a goal), with a warning. `trained_horizon` follows from it.
            device: where it runs: cpu, cuda, cuda:n or auto.
            dtype: precision of the weights, but for those that know states; float32 where left out.

        Raises:
            DeviceError: CUDA was asked for and is absent, or the name is unknown.
            CheckpointError: nothing there, or it is damaged or does not fit.
            ConfigError: `goal` or `trained_frames` contradict what is known of the model.
        """
        device = choose_device(device) if isinstance(device, str) else device
        found = hub.load(name, goal=goal, trained_frames=trained_frames)
        if found.tokenizer is None or found.transformer is None:
            missing = "tokenizer" if found.tokenizer is None else "transformer"
            raise CheckpointError(f"{name} holds no {missing}; a world model needs both. Train the {missing} first.")
        (config, weights), (told, learned) = found.tokenizer, found.transformer
        tokenizer = built(lambda: CompressiveTokenizer(config), weights, where=f"tokenizer of {name}")
        transformer = built(lambda: VideoTransformer(told), learned, where=f"transformer of {name}")
        exact = [copy.deepcopy(part.states) for part in (tokenizer, transformer)]
        model = cls(tokenizer, transformer, found.sampling).to(device=device, dtype=dtype)
        for part, states in zip((tokenizer, transformer), exact, strict=True):
            if states is not None:  # in float32: a rounded position would be off by a tenth of a pixel
                part.states = states.to(device)
        return model

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        layout: hub.Layout = "native",
        dtype: torch.dtype | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the model so that `from_pretrained` reads it; the folder appears whole or not at all.

        Args:
            folder: must not exist, or be empty, unless `overwrite`.
            layout: `"native"`, or `"official"` for the layout of the published research checkpoints.
            dtype: precision of the written weights; as they are where left out.

        Raises:
            OutputError: the folder holds something, or the disk is full.
            CheckpointError: the official layout cannot express this model.
        """
        parts = [dict(self.tokenizer.state_dict()), dict(self.transformer.state_dict())]
        if dtype is not None:
            parts = [hub.as_dtype(part, dtype) for part in parts]
        checkpoint = hub.Checkpoint(
            tokenizer=(self.tokenizer.config, parts[0]),
            transformer=(self.transformer.config, parts[1]),
            sampling=self.sampling,
        )
        return hub.save(folder, checkpoint, layout=layout, overwrite=overwrite)

    def for_inference(
        self, precision: Precision | Literal["auto"] = "auto", *, compiled: bool = False
    ) -> InferenceModel:
        """A copy that only imagines, faster.

        On CPUs a bf16 copy holds the transformer's weights twice, the second time as oneDNN multiplies them.

        Args:
            precision: `"float32"`; `"bf16"`; or `"auto"`, bf16 where the hardware multiplies it, else float32.
                benchmarks/README.md has what bf16 costs in quality.
            compiled: whether frames run through `torch.compile`, which takes a minute for each number of rows; where
                that fails there is a warning, and they run as they are. On a GPU frames are CUDA graphs in
                any case, for which a session keeps a context for every row.

        Raises:
            ConfigError: another precision.
        """
        chosen = choose_precision(precision, self.device)
        transformer = self.transformer.for_inference(chosen, compiled=compiled)
        return InferenceModel(self.tokenizer.for_inference(chosen), transformer, self.sampling, chosen)
