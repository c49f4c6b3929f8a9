"""Copies that only imagine: the same up to rounding, in every precision; not to be trained or saved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ivideogpt import InferenceModel, VideoTransformer, WorldModel
from ivideogpt.config import SamplingConfig, StateConfig
from ivideogpt.devices import Precision, choose_precision
from ivideogpt.errors import ConfigError
from ivideogpt.inference import Imagines
from ivideogpt.tokenizer.upsample import UpsamplingConv
from ivideogpt.transformer.packed import PackedLinear, can_pack

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]


@pytest.fixture
def model(make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=3, reward=True, place_embedding=True)


def test_float32_imagines_the_same(model: WorldModel, make_frames: MakeFrames) -> None:
    fast = model.for_inference("float32")
    context, actions = make_frames(3, 2), torch.rand(3, 6, 3)
    expected, made = (each.rollout(context, actions, samples=2, seed=1) for each in (model, fast))
    torch.testing.assert_close(made.video, expected.video, atol=1e-4, rtol=0)
    torch.testing.assert_close(made.rewards, expected.rewards, atol=1e-4, rtol=0)
    parts = (fast.tokenizer, fast.transformer)
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())
    assert all(weight.requires_grad for weight in model.parameters()), "the model itself is as it was"


def legal_logits(transformer: VideoTransformer, tokens: Tensor, actions: Tensor) -> Tensor:
    """As sessions compute them."""
    return transformer.dynamics_logits(transformer.hidden_states(transformer.embed(tokens, actions))).float()


@torch.no_grad()
def test_low_precision_is_near(model: WorldModel, make_frames: MakeFrames) -> None:
    fast = model.for_inference("bf16")
    tokens, actions = model.tokenizer.tokenize(make_frames(2, 5)), torch.rand(2, 5, 3)
    exact, near = (legal_logits(each.transformer, tokens, actions) for each in (model, fast))
    assert (near - exact).square().mean() < 0.02 * exact.square().mean()
    video = fast.rollout(make_frames(2, 2), actions[:, :4], horizon=2, seed=0).video
    assert video.dtype == torch.float32 and torch.isfinite(video).all()
    assert fast.start(make_frames(2, 2), 3).step(actions.repeat(3, 1, 1)[:, 0]).tokens.shape == (6, 4)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@torch.no_grad()
def test_states_are_kept_as_they_are(
    make_world_model: MakeWorldModel, make_frames: MakeFrames, precision: Precision
) -> None:
    state = StateConfig(angles=(1,), mean=(3.0, 0.0), std=(2.0, 1.0), change=(0.3, 0.1))
    model = make_world_model(action_dim=3, state=state)
    fast = model.for_inference(precision)
    for exact, copied in ((model.tokenizer, fast.tokenizer), (model.transformer, fast.transformer)):
        assert exact.states is not None and copied.states is not None and exact.states is not copied.states
        theirs = dict([*copied.states.named_parameters(), *copied.states.named_buffers()])
        for name, tensor in (*exact.states.named_parameters(), *exact.states.named_buffers()):
            assert theirs[name].dtype == torch.float32 and torch.equal(theirs[name], tensor), name
            assert not theirs[name].requires_grad
    given, context, action = torch.randn(2, 2, 2), make_frames(2, 2), torch.rand(2, 3)
    steps = [each.start(context, seed=0, states=given).step(action) for each in (model, fast)]
    assert torch.equal(steps[0].state, steps[1].state)  # type: ignore[arg-type]
    session = fast.start(context, seed=0, horizon=2)
    for _ in range(4):
        step = session.step(action)
        assert step.state is not None and torch.isfinite(step.state).all()
        session.reset(context[:1], [1])


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
    fast = model.for_inference("bf16")
    assert not any(isinstance(module, PackedLinear) for module in fast.transformer.modules())
    assert fast.rollout(make_frames(2, 2), horizon=1).video.shape == (2, 1, 3, 3, 16, 16)


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


def test_sampling_goes_along(make_world_model: MakeWorldModel) -> None:
    plain = make_world_model()
    model = WorldModel(plain.tokenizer, plain.transformer, SamplingConfig(temperature=0.5))
    assert model.for_inference("bf16").sampling.temperature == 0.5


def test_rows_out_of_step_and_drafts_in_bf16(model: WorldModel, make_frames: MakeFrames) -> None:
    fast = model.for_inference("bf16")
    session = fast.start(make_frames(3, 2), branches=2, seed=1, horizon=3)
    for number in range(7):
        step = session.step(torch.rand(6, 3))
        assert step.frame is not None and torch.isfinite(step.frame).all()
        if number in (0, 4):
            session.reset(make_frames(2, 2, seed=number), [1, 4])
    single = fast.start(make_frames(1, 2), seed=1, horizon=3)
    for _ in range(7):
        assert torch.isfinite(single.step(torch.rand(1, 3)).entropy).all()


def test_it_only_imagines(model: WorldModel) -> None:
    fast = model.for_inference("float32")
    assert isinstance(fast, InferenceModel) and isinstance(fast, Imagines) and isinstance(model, Imagines)
    for name in ("train", "parameters", "to", "save_pretrained", "for_inference", "state_dict"):
        assert hasattr(model, name) and not hasattr(fast, name)
    assert fast.eval() is fast
    for name in ("device", "layout", "longest_horizon", "trained_horizon"):
        assert getattr(fast, name) == getattr(model, name)
    assert fast.session_bytes(2, 3) == model.session_bytes(2, 3)


def test_making_it_draws_no_random_numbers(model: WorldModel) -> None:
    before = torch.get_rng_state()
    for precision in ("float32", "bf16"):
        assert model.for_inference(precision).precision == precision  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_follows_the_hardware(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.for_inference().precision == choose_precision("auto", torch.device("cpu"))
    monkeypatch.setattr("ivideogpt.devices._linux_cpu_flags", list)
    assert model.for_inference().precision == "float32"


def test_unknown_precision(model: WorldModel) -> None:
    with pytest.raises(ConfigError, match="unknown precision 'int8'"):
        model.for_inference("int8")  # type: ignore[arg-type]


def test_it_says_what_it_is(model: WorldModel) -> None:
    for one in (model, model.for_inference("float32")):
        text = repr(one)
        assert "\n" not in text and text.startswith(f"{type(one).__name__}(16 px, 2 context frames, actions of 3, ")
