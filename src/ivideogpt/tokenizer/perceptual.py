"""LPIPS: the distance between two frames as a VGG16 network sees them, with weights that the user supplies.

Shapes: B frames, H and W rows and columns, C channels of a feature map.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ivideogpt.devices import no_autocast
from ivideogpt.errors import CheckpointError, ShapeError

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SMALLEST_SIDE = 2 ** (len(_STAGES) - 1)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_NORM_EPS = 1e-10
_VGG16_SOURCE = "The VGG16 file is torchvision's vgg16 state dict, ImageNet weights (`features.N.weight`)."
_HEADS_SOURCE = "The heads file is weights/v0.1/vgg.pth of the lpips project (`linN.model.1.weight`)."


class LPIPS(nn.Module):
    """Learned perceptual distance on VGG16, version 0.1 (Zhang et al., 2018, arXiv 1801.03924).

    Frozen and always in evaluation mode: gradients reach the frames, never the weights. The constructor gives
    random weights, `from_files` the real ones.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = _vgg16_features()
        self.heads = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in _STAGES)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_files(cls, vgg16: Path, heads: Path) -> Self:
        """Read the weights from two files, each .safetensors, or .pth / .pt as `torch.save` writes it.

        Args:
            vgg16: torchvision's state dict of vgg16; its classifier is ignored.
            heads: the five linear heads of the lpips project, `lin{0..4}.model.1.weight`, each (1,C,1,1).

        Raises:
            CheckpointError: a file is missing or no state dict, or lacks a tensor or has it in another shape.
        """
        lpips = cls()
        stack = {f"features.{name}": weight for name, weight in lpips.features.named_parameters()}
        linear = {f"lin{i}.model.1.weight": weight for i, weight in enumerate(lpips.heads.parameters())}
        _fill(stack, Path(vgg16), _VGG16_SOURCE)
        _fill(linear, Path(heads), _HEADS_SOURCE)
        return lpips

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two batches of frames (B,3,H,W), float in [0,1], sides of at least 16 pixels -> (B,) distances.

        Equal frames are at distance 0. Distances are taken in float32 whatever the precision around.

        Raises:
            ShapeError: the two differ in shape, or are not float frames of a legal size.
        """
        _require_frames(x, y)
        pairs = zip(self.heads, self._feature_maps(x), self._feature_maps(y), strict=True)
        with no_autocast(x.device):
            layers = [head((_unit(a) - _unit(b)).square()).mean(dim=(1, 2, 3)) for head, a, b in pairs]
        return torch.stack(layers).sum(dim=0)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, also when a module around this one is set to train."""
        return super().train(False)

    def _feature_maps(self, frames: Tensor) -> list[Tensor]:
        """What each stage hands to the pooling after it: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
        x = (2 * frames - 1 - self.shift) / self.scale
        maps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return [*maps, x]


def _vgg16_features() -> nn.Sequential:
    """The convolutions of VGG16, numbered as torchvision numbers them, without the last pooling."""
    layers: list[nn.Module] = []
    inputs = 3
    for widths in _STAGES:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
    return nn.Sequential(*layers)


def _unit(features: Tensor) -> Tensor:
    """(B,C,H,W) -> the same in float32 with length 1 along C, or 0 where all channels are 0."""
    features = features.float()
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (length + _NORM_EPS)


def _require_frames(x: Tensor, y: Tensor) -> None:
    for frames in (x, y):
        legal = frames.ndim == 4 and frames.shape[1] == 3 and min(frames.shape[2:]) >= _SMALLEST_SIDE
        if not legal or not frames.is_floating_point() or frames.shape != x.shape:
            raise ShapeError(
                f"LPIPS was given {tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}; both must be "
                f"(B,3,H,W) float frames in [0,1] of one shape, with sides of at least {_SMALLEST_SIDE} "
                "pixels. Divide uint8 frames by 255 and flatten videos to (B*T,3,H,W)."
            )


def _fill(weights: Mapping[str, Tensor], path: Path, source: str) -> None:
    """Copy the tensors of a file into weights of the same names; what else the file holds is ignored."""
    stored = _read_tensors(path, source)
    missing = [name for name in weights if name not in stored]
    wrong = [
        f"{name} is {tuple(stored[name].shape)}, must be {tuple(weight.shape)}"
        for name, weight in weights.items()
        if name in stored and stored[name].shape != weight.shape
    ]
    for problem, names in (("missing", missing), ("of another shape", wrong)):
        if names:
            count = f"{len(names)} of {len(weights)} tensors"
            raise CheckpointError(f"{path}: {count} are {problem} ({_listed(names)}). {source}")
    for name, weight in weights.items():
        weight.copy_(stored[name])


def _read_tensors(path: Path, source: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no perceptual weight file at {path.absolute()}. {source}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever it happened to be cut at
        raise CheckpointError(
            f"{path} is not a whole .safetensors or .pth file of tensors ({type(error).__name__}); other "
            f"objects are never unpickled. Save the state dict alone, or get the file again. {source}"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a state dict. {source}")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _listed(names: list[str]) -> str:
    return "; ".join(names[:3]) + (" ..." if len(names) > 3 else "")
