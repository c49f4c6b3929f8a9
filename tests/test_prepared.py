"""Models prepared for imagining: the same up to rounding, in every precision; not to be trained or saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt import VideoTransformer, WorldModel
from ivideogpt.config import SamplingConfig, StateConfig
from ivideogpt.errors import CheckpointError, ConfigError, ShapeError
from ivideogpt.tokenizer.int8 import Int8Conv, can_convolve_in_int8
from ivideogpt.tokenizer.upsample import UpsamplingConv
from ivideogpt.transformer.int8 import DynamicInt8Linear, Int8Linear
from ivideogpt.transformer.packed import PackedLinear, can_pack
from ivideogpt.transformer.static import StaticCache
from ivideogpt.world_model import precisions_on

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]


HAS_W8A8 = "w8a8" in precisions_on(torch.device("cpu"))
needs_w8a8 = pytest.mark.skipif(not HAS_W8A8, reason="this processor or build of PyTorch has no 8-bit products")
LOW = ["bf16", "int8", pytest.param("w8a8", marks=needs_w8a8)]


@pytest.fixture
def model(make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=3, reward=True, place_embedding=True)


def test_float32_imagines_the_same(model: WorldModel, make_frames: MakeFrames) -> None:
    prepared = model.prepared("float32")
    context, actions = make_frames(3, 2), torch.rand(3, 6, 3)
    expected, made = (each.rollout(context, actions, samples=2, seed=1) for each in (model, prepared))
    torch.testing.assert_close(made.video, expected.video, atol=1e-4, rtol=0)
    torch.testing.assert_close(made.rewards, expected.rewards, atol=1e-4, rtol=0)
    assert not any(weight.requires_grad for weight in prepared.parameters())
    assert all(weight.requires_grad for weight in model.parameters()), "the model itself is as it was"


def legal_logits(transformer: VideoTransformer, tokens: Tensor, actions: Tensor) -> Tensor:
    """As sessions compute them."""
    return transformer.dynamics_logits(transformer.hidden_states(transformer.embed(tokens, actions))).float()


@pytest.mark.parametrize("precision", LOW)
@torch.no_grad()
def test_low_precision_is_near(model: WorldModel, make_frames: MakeFrames, precision: str) -> None:
    prepared = model.prepared(precision)  # type: ignore[arg-type]
    tokens, actions = model.tokenizer.tokenize(make_frames(2, 5)), torch.rand(2, 5, 3)
    exact, near = (legal_logits(each.transformer, tokens, actions) for each in (model, prepared))
    assert (near - exact).square().mean() < 0.02 * exact.square().mean()
    video = prepared.rollout(make_frames(2, 2), actions[:, :4], horizon=2, seed=0).video
    assert video.dtype == torch.float32 and torch.isfinite(video).all()
    assert prepared.start(make_frames(2, 2), 3).step(actions.repeat(3, 1, 1)[:, 0]).tokens.shape == (6, 4)


@pytest.mark.parametrize("precision", ["float32", *LOW])
@torch.no_grad()
def test_states_are_kept_as_they_are(make_world_model: MakeWorldModel, make_frames: MakeFrames, precision: str) -> None:
    state = StateConfig(angles=(1,), mean=(3.0, 0.0), std=(2.0, 1.0), change=(0.3, 0.1))
    model = make_world_model(action_dim=3, state=state)
    prepared = model.prepared(precision)  # type: ignore[arg-type]
    for exact, copied in ((model.tokenizer, prepared.tokenizer), (model.transformer, prepared.transformer)):
        assert exact.states is not None and copied.states is not None and exact.states is not copied.states
        theirs = dict([*copied.states.named_parameters(), *copied.states.named_buffers()])
        for name, tensor in (*exact.states.named_parameters(), *exact.states.named_buffers()):
            assert theirs[name].dtype == torch.float32 and torch.equal(theirs[name], tensor), name
            assert not theirs[name].requires_grad
    given, context, action = torch.randn(2, 2, 2), make_frames(2, 2), torch.rand(2, 3)
    steps = [each.start(context, seed=0, states=given).step(action) for each in (model, prepared)]
    assert torch.equal(steps[0].state, steps[1].state)  # type: ignore[arg-type]
    session = prepared.start(context, seed=0, horizon=2)
    for _ in range(4):
        step = session.step(action)
        assert step.state is not None and torch.isfinite(step.state).all()
        session.reset(context[:1], [1])


def test_int8_halves_the_layers_again(make_world_model: MakeWorldModel) -> None:
    half, quarter = make_world_model().to(torch.bfloat16).transformer, make_world_model().prepared("int8").transformer
    linear = [module for module in half.layers.modules() if isinstance(module, nn.Linear)]
    small = [module for module in quarter.layers.modules() if isinstance(module, Int8Linear)]
    assert len(small) == len(linear) == 4 * len(half.layers)
    assert sum(m.weight.nbytes for m in small) * 2 == sum(m.weight.nbytes for m in linear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inputs"), [(3, 96), (50, 96), (3, 40)])
def test_an_8_bit_product(dtype: torch.dtype, rows: int, inputs: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, 64, bias=False).to(dtype)
    with torch.no_grad():
        linear.weight[5] *= 100  # every row has its own scale
        linear.weight[6] = 0
    x = torch.randn(2, rows, inputs).to(dtype)
    expected, made = linear(x).float(), Int8Linear(linear.weight)(x).float()
    scale = linear.weight.float().abs().amax(dim=1) / 127
    bound = scale * x.float().abs().sum(-1, keepdim=True) / 2 + 0.02 * expected.abs() + 1e-6
    assert ((made - expected).abs() <= bound).all()


@needs_w8a8
@pytest.mark.parametrize("rows", [(1,), (1, 1), (2,), (3, 5), (100, 1)])
def test_a_product_in_8_bits(rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64), torch.randn(*rows, 64)
    weight[5] *= 100  # every output has its own scale
    weight[6] = 0
    x[0] *= 1000  # and every row
    expected, made = F.linear(x, weight), DynamicInt8Linear(weight)(x)
    assert made.shape == (*rows, 96) and made.dtype == torch.float32
    size = x.norm(dim=-1, keepdim=True) * weight.norm(dim=-1)
    assert ((made - expected).abs() <= 0.02 * size).all()
    assert torch.equal(DynamicInt8Linear(weight)(x[:1]), made[:1]), "whatever other rows there are"


@needs_w8a8
def test_rows_of_zeros_stay_zeros() -> None:
    layer = DynamicInt8Linear(torch.randn(16, 32))
    for rows in (1, 3):
        assert torch.equal(layer(torch.zeros(rows, 32)), torch.zeros(rows, 16))


@needs_w8a8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_convolution_in_8_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, 3, padding=1)
    x = F.silu(torch.randn(2, 6, 5, 7) * torch.tensor([0.1, 1, 1, 3, 10, 30])[:, None, None])
    expected = conv(x)
    made = Int8Conv(conv.to(dtype), x.amax(dim=(0, 2, 3)))(x.to(dtype).contiguous(memory_format=torch.channels_last))
    assert made.shape == expected.shape and made.dtype == dtype
    assert (made.float() - expected).norm() < 0.02 * expected.norm()


@needs_w8a8
def test_w8a8_is_laid_over_the_values_of_the_calibration(model: WorldModel, make_frames: MakeFrames) -> None:
    video = make_frames(2, 5)
    tokens = model.tokenizer.tokenize(video)
    expected = model.tokenizer.detokenize(tokens)
    prepared = [model.prepared("w8a8", calibration=videos) for videos in (video, None)]
    assert all(any(isinstance(part, Int8Conv) for part in each.tokenizer.modules()) for each in prepared)
    like, unlike = ((each.tokenizer.detokenize(tokens) - expected).square().mean() for each in prepared)
    assert like < unlike < 0.01


@needs_w8a8
def test_context_frames_alone_can_calibrate(model: WorldModel, make_frames: MakeFrames) -> None:
    context = make_frames(2, 2)
    one, other = (model.prepared("w8a8", calibration=videos) for videos in (context, torch.cat([context] * 2, dim=1)))
    assert torch.equal(one.rollout(context, horizon=2, seed=1).video, other.rollout(context, horizon=2, seed=1).video)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (torch.zeros(1, 5, 3, 8, 8), r"shape \(1, 5, 3, 8, 8\)"),
        (torch.zeros(1, 1, 3, 16, 16), "1 frames are fewer than the 2 context frames"),
        (torch.zeros(0, 2, 3, 16, 16), "0 calibration videos were given"),
        (torch.full((1, 2, 3, 16, 16), torch.nan), "must lie in .0, 1. and be finite"),
        ([0.0], "calibration is a list; give a torch tensor"),
    ],
)
@pytest.mark.parametrize("precision", ["auto", "float32", "w8a8"])
def test_calibration_that_cannot_be(model: WorldModel, videos: Tensor, message: str, precision: str) -> None:
    with pytest.raises(ShapeError, match=message):
        model.prepared(precision, calibration=videos)  # type: ignore[arg-type]


@needs_w8a8
def test_the_same_tokens_by_drafts_and_in_turn(model: WorldModel, make_frames: MakeFrames) -> None:
    prepared = model.prepared("w8a8")
    sessions = [prepared.start(make_frames(1, 2), seed=1, horizon=4, drafts=drafts) for drafts in (True, False)]
    for _ in range(9):
        action = torch.rand(1, 3)
        one, other = (session.step(action) for session in sessions)
        assert torch.equal(one.tokens, other.tokens)


def test_preparing_draws_no_random_numbers(model: WorldModel) -> None:
    can_convolve_in_int8.cache_clear()
    before = torch.get_rng_state()
    for precision in precisions_on(torch.device("cpu")):
        assert model.prepared(precision).precision == precision
    assert torch.equal(torch.get_rng_state(), before)


def test_w8a8_elsewhere(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivideogpt.world_model.can_multiply_in_int8", lambda: False)
    with pytest.raises(
        ConfigError, match=r"w8a8 needs a CPU that multiplies 8-bit numbers.*Available on this cpu: float32"
    ):
        model.prepared("w8a8")


@needs_w8a8
def test_auto_considers_w8a8_where_it_can_be_calibrated(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_frames: MakeFrames
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("ivideogpt.world_model.wants_bf16", lambda *_: True)
    choices = [model.prepared(calibration=videos).choice or "" for videos in (None, make_frames(1, 4), None)]
    assert ["w8a8" in choice for choice in choices] == [False, True, False]
    assert ["measured earlier" in choice for choice in choices] == [False, False, True]


@pytest.mark.skipif(not can_pack(), reason="this build of PyTorch has no packed products")
@pytest.mark.parametrize("rows", [(1,), (1, 1), (2,), (3, 5), (100, 1)])
def test_a_packed_product(rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64).bfloat16(), torch.randn(*rows, 64).bfloat16()
    made = PackedLinear(weight)(x)
    assert made.shape == (*rows, 96) and made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), x.float() @ weight.float().T, atol=0.1, rtol=0.02)


def test_where_nothing_can_be_packed(
    model: WorldModel, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivideogpt.transformer.model.can_pack", lambda: False)
    prepared = model.prepared("bf16")
    assert not any(isinstance(module, PackedLinear) for module in prepared.modules())
    assert prepared.rollout(make_frames(2, 2), horizon=1).video.shape == (2, 1, 3, 3, 16, 16)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_upsampling_in_parts(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = UpsamplingConv(6)
    names = set(plain.state_dict())
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=memory_format)
    expected = plain(x)
    plain.split()
    torch.testing.assert_close(plain(x), expected, atol=1e-5, rtol=1e-5)
    assert set(plain.state_dict()) == names == {"weight", "bias"}


@pytest.mark.parametrize("works", [True, False])
def test_static_steps_imagine_the_same(
    model: WorldModel, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Compiling itself takes minutes and a compiler; what is compiled is run as it is, or fails to compile."""

    def compile_nothing(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        return function if works else failing

    def failing(*_: object) -> Tensor:
        raise RuntimeError("no compiler here\nand a long story")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    prepared = model.prepared("float32", compiled=True)
    sessions = [each.start(make_frames(3, 2), branches=2, seed=1, horizon=3) for each in (model, prepared)]
    assert isinstance(sessions[1]._open().cache, StaticCache)
    for number in range(6):
        action = torch.rand(6, 3)
        if number == 0 and not works:
            with pytest.warns(UserWarning, match="could not be compiled, so it runs as it is: no compiler here"):
                steps = [session.step(action) for session in sessions]
        else:
            steps = [session.step(action) for session in sessions]
        assert torch.equal(steps[0].tokens, steps[1].tokens)
        torch.testing.assert_close(steps[1].frame, steps[0].frame, atol=1e-4, rtol=0)
        torch.testing.assert_close(steps[1].reward, steps[0].reward, atol=1e-4, rtol=0)
        if number == 1:
            for session in sessions:
                session.reset(make_frames(2, 2, seed=4), [1, 4])  # now they are out of step


def test_the_fastest_is_chosen_and_said(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_frames: MakeFrames
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepared = model.prepared()
    assert prepared.choice is not None and "is fastest here (float32 " in prepared.choice
    again = model.prepared()
    assert again.choice is not None and "measured earlier" in again.choice
    assert prepared.rollout(make_frames(1, 2), horizon=1).video.shape == (1, 1, 3, 3, 16, 16)


def test_sampling_goes_along(make_world_model: MakeWorldModel) -> None:
    plain = make_world_model()
    model = WorldModel(plain.tokenizer, plain.transformer, SamplingConfig(temperature=0.5))
    assert model.prepared("bf16").sampling.temperature == 0.5


@pytest.mark.parametrize("precision", LOW)
def test_rows_out_of_step_and_drafts_in_low_precision(
    model: WorldModel, make_frames: MakeFrames, precision: str
) -> None:
    prepared = model.prepared(precision)  # type: ignore[arg-type]
    session = prepared.start(make_frames(3, 2), branches=2, seed=1, horizon=3)
    for number in range(7):
        step = session.step(torch.rand(6, 3))
        assert step.frame is not None and torch.isfinite(step.frame).all()
        if number in (0, 4):
            session.reset(make_frames(2, 2, seed=number), [1, 4])
    single = prepared.start(make_frames(1, 2), seed=1, horizon=3)
    for _ in range(7):
        assert torch.isfinite(single.step(torch.rand(1, 3)).entropy).all()


def test_it_cannot_be_prepared_again(model: WorldModel) -> None:
    with pytest.raises(ConfigError, match="prepared for imagining already"):
        model.prepared("int8").prepared("bf16")


def test_it_cannot_be_saved(model: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="prepared for imagining cannot be saved"):
        model.prepared("int8").save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_unknown_precision(model: WorldModel) -> None:
    with pytest.raises(ConfigError, match=r"unknown precision 'int4'\. Did you mean 'int8'"):
        model.prepared("int4")  # type: ignore[arg-type]
