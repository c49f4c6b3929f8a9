"""LPIPS against a plain reference, on random weights in the layouts of torchvision and the lpips project."""

from __future__ import annotations

import math
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ivideogpt.errors import CheckpointError, ShapeError
from ivideogpt.tokenizer.perceptual import LPIPS

Weights = dict[str, Tensor]

# torchvision's number of each convolution: (inputs, outputs), stage by stage.
STAGES: list[dict[int, tuple[int, int]]] = [
    {0: (3, 64), 2: (64, 64)},
    {5: (64, 128), 7: (128, 128)},
    {10: (128, 256), 12: (256, 256), 14: (256, 256)},
    {17: (256, 512), 19: (512, 512), 21: (512, 512)},
    {24: (512, 512), 26: (512, 512), 28: (512, 512)},
]
HEAD_WIDTHS = [64, 128, 256, 512, 512]


def random_vgg16(generator: torch.Generator) -> Weights:
    weights: Weights = {"classifier.0.weight": torch.zeros(2, 2)}
    for number, (inputs, outputs) in [pair for stage in STAGES for pair in stage.items()]:
        scale = math.sqrt(2 / (9 * inputs))
        weights[f"features.{number}.weight"] = scale * torch.randn(outputs, inputs, 3, 3, generator=generator)
        weights[f"features.{number}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return weights


def random_heads(generator: torch.Generator) -> Weights:
    return {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for i, width in enumerate(HEAD_WIDTHS)
    }


def blank_vgg16() -> Weights:
    """Right names and shapes, one stored number a tensor: small files for the tests of bad input."""
    weights: Weights = {}
    for number, (inputs, outputs) in [pair for stage in STAGES for pair in stage.items()]:
        weights[f"features.{number}.weight"] = torch.zeros(()).expand(outputs, inputs, 3, 3)
        weights[f"features.{number}.bias"] = torch.zeros(()).expand(outputs)
    return weights


def reference(vgg16: Weights, heads: Weights, x: Tensor, y: Tensor) -> Tensor:
    """The definition, written out."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    a, b = ((z * 2 - 1 - shift) / scale for z in (x, y))
    total = torch.zeros(len(x))
    for i, stage in enumerate(STAGES):
        if i > 0:
            a, b = F.max_pool2d(a, 2, 2), F.max_pool2d(b, 2, 2)
        for number in stage:
            weight, bias = vgg16[f"features.{number}.weight"], vgg16[f"features.{number}.bias"]
            a, b = (F.conv2d(z, weight, bias, padding=1).clamp(min=0) for z in (a, b))
        u, v = (z / ((z**2).sum(dim=1, keepdim=True).sqrt() + 1e-10) for z in (a, b))
        total += ((u - v) ** 2 * heads[f"lin{i}.model.1.weight"]).sum(dim=1).mean(dim=(1, 2))
    return total


@pytest.fixture(scope="module")
def vgg16() -> Weights:
    return random_vgg16(torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def heads() -> Weights:
    return random_heads(torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not pytest's tmp_path, which is kept after the run: these files are large.
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture(scope="module")
def lpips(vgg16: Weights, heads: Weights, folder: Path) -> LPIPS:
    torch.save(vgg16, folder / "vgg16.pth")
    torch.save(heads, folder / "heads.pth")
    return LPIPS.from_files(folder / "vgg16.pth", folder / "heads.pth")


def frames(seed: int, batch: int = 3, size: int = 32) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_equals_the_reference(lpips: LPIPS, vgg16: Weights, heads: Weights) -> None:
    x, y = frames(0), frames(1)
    expected = reference(vgg16, heads, x, y)
    assert expected.min() > 1e-2
    torch.testing.assert_close(lpips(x, y), expected, rtol=1e-5, atol=1e-6)


def test_frames_need_not_be_square(lpips: LPIPS, vgg16: Weights, heads: Weights) -> None:
    x, y = frames(0)[..., :19, :], frames(1)[..., :19, :]
    torch.testing.assert_close(lpips(x, y), reference(vgg16, heads, x, y), rtol=1e-5, atol=1e-6)


def test_is_a_distance_of_each_row(lpips: LPIPS) -> None:
    x, y = frames(0), frames(1)
    distances = lpips(x, y)
    assert distances.shape == (3,)
    assert torch.equal(lpips(x, x), torch.zeros(3))
    torch.testing.assert_close(lpips(y, x), distances)
    torch.testing.assert_close(lpips(x[1:2], y[1:2]), distances[1:2], rtol=1e-5, atol=1e-6)
    near = (x + 0.05 * (y - x)).clamp(0, 1)
    assert (lpips(x, near) < distances).all()


def test_safetensors_and_old_pickles_are_read_alike(lpips: LPIPS, vgg16: Weights, heads: Weights, folder: Path) -> None:
    save_file(vgg16, folder / "vgg16.safetensors")
    torch.save(heads, folder / "old.pt", _use_new_zipfile_serialization=False)
    other = LPIPS.from_files(folder / "vgg16.safetensors", folder / "old.pt")
    assert torch.equal(other(frames(0), frames(1)), lpips(frames(0), frames(1)))


def test_gradients_reach_the_frames_and_never_the_weights(lpips: LPIPS) -> None:
    x = frames(0).requires_grad_()
    lpips(x, frames(1)).mean().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert all(not weight.requires_grad and weight.grad is None for weight in lpips.parameters())


def test_all_is_finite_where_all_features_are_zero() -> None:
    dead = LPIPS()
    assert isinstance(dead.features[2], torch.nn.Conv2d)
    dead.features[2].bias.fill_(-1e3)  # type: ignore[union-attr]
    x = frames(0).requires_grad_()
    distances = dead(x, frames(1))
    distances.sum().backward()
    assert distances.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_descending_the_distance_brings_a_frame_nearer(lpips: LPIPS) -> None:
    target, x = frames(1, batch=1), frames(0, batch=1).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    start = lpips(x, target).item()
    for _ in range(20):
        optimizer.zero_grad()
        lpips(x, target).sum().backward()
        optimizer.step()
    assert lpips(x, target).item() < 0.5 * start


def test_stays_in_evaluation_mode(lpips: LPIPS) -> None:
    around = torch.nn.Sequential(lpips).train()
    assert around.training
    assert not any(module.training for module in lpips.modules())


def test_bfloat16_around_it_costs_little(lpips: LPIPS) -> None:
    expected = lpips(frames(0), frames(1))
    with torch.autocast("cpu", torch.bfloat16):
        distances = lpips(frames(0), frames(1))
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (frames(0), frames(0, batch=2)),
        (frames(0), frames(0, size=48)),
        (frames(0)[:, :1], frames(0)[:, :1]),
        (frames(0)[0], frames(0)[0]),
        (frames(0, size=15), frames(0, size=15)),
        ((255 * frames(0)).byte(), (255 * frames(0)).byte()),
        (frames(0), (255 * frames(0)).byte()),
    ],
    ids=["batch", "size", "channels", "rank", "small", "uint8", "one uint8"],
)
def test_frames_that_do_not_fit_are_named(lpips: LPIPS, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ShapeError, match="LPIPS was given") as raised:
        lpips(x, y)
    assert str(tuple(y.shape)) in str(raised.value)
    assert str(y.dtype) in str(raised.value)


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_missing_files_are_named_with_their_source(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no .* file at .*nowhere\.pth.*torchvision's vgg16"):
        LPIPS.from_files(tmp_path / "nowhere.pth", tmp_path / "heads.pth")
    good = save(tmp_path / "vgg16.pth", blank_vgg16())
    with pytest.raises(CheckpointError, match=r"no .* file at .*heads\.pth.*lpips project"):
        LPIPS.from_files(good, tmp_path / "heads.pth")


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    weights = blank_vgg16()
    del weights["features.28.bias"]
    bad = save(tmp_path / "vgg16.pth", weights)
    with pytest.raises(CheckpointError, match=r"1 of 26 tensors are missing \(features\.28\.bias\)"):
        LPIPS.from_files(bad, tmp_path / "heads.pth")


def test_swapped_files_are_named(tmp_path: Path, heads: Weights) -> None:
    bad = save(tmp_path / "heads.pth", heads)
    with pytest.raises(CheckpointError, match=r"26 of 26 tensors are missing \(features\.0\.weight; .* \.\.\.\)"):
        LPIPS.from_files(bad, save(tmp_path / "vgg16.pth", blank_vgg16()))


def test_wrong_shapes_are_named(tmp_path: Path, heads: Weights) -> None:
    bad = save(tmp_path / "heads.pth", {**heads, "lin1.model.1.weight": torch.zeros(1, 192, 1, 1)})
    message = r"lin1\.model\.1\.weight is \(1, 192, 1, 1\), must be \(1, 128, 1, 1\).*lpips project"
    with pytest.raises(CheckpointError, match=message):
        LPIPS.from_files(save(tmp_path / "vgg16.pth", blank_vgg16()), bad)


@pytest.mark.parametrize("name", ["vgg16.pth", "vgg16.pt", "vgg16.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not a whole \.safetensors or \.pth file"):
        LPIPS.from_files(tmp_path / name, tmp_path / "heads.pth")


@pytest.mark.parametrize("old", [False, True])
def test_truncated_files_are_refused(tmp_path: Path, heads: Weights, old: bool) -> None:
    path = tmp_path / "vgg16.pth"
    torch.save(heads, path, _use_new_zipfile_serialization=not old)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="is not a whole"):
        LPIPS.from_files(path, tmp_path / "heads.pth")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    bad = save(tmp_path / "vgg16.pth", [torch.zeros(1)])
    with pytest.raises(CheckpointError, match="holds list, not a state dict"):
        LPIPS.from_files(bad, tmp_path / "heads.pth")


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_nothing_in_a_file_is_ever_run(tmp_path: Path, writer: str) -> None:
    path, mark = tmp_path / "vgg16.pth", tmp_path / "mark"
    content = {**blank_vgg16(), "extra": Exploit(mark)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Exploit(mark)}, protocol=2))
    with pytest.raises(CheckpointError, match="objects are never unpickled"):
        LPIPS.from_files(path, tmp_path / "heads.pth")
    assert not mark.exists()
