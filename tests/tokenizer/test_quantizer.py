"""Both quantizers against their formulas, and the figures of codebook use."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ivideogpt.tokenizer.quantizer import FiniteScalarQuantizer, VectorQuantizer, usage

CODES, WIDTH = 12, 3
LEVELS = [(8, 5, 5, 5), (5,), (2, 3), (4, 4), (7, 2, 6)]


@pytest.fixture
def vq() -> VectorQuantizer:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(CODES, WIDTH, beta=0.5)
    torch.nn.init.normal_(quantizer.embedding.weight)
    return quantizer


def test_vq_takes_the_nearest_code(vq: VectorQuantizer) -> None:
    vectors = torch.randn(4, 5, WIDTH)
    quantized = vq(vectors)
    assert quantized.codes.shape == (4, 5)
    assert quantized.codes.dtype == torch.int64
    for place in itertools.product(range(4), range(5)):
        distances = [(vectors[place] - code).norm() for code in vq.embedding.weight]
        assert int(quantized.codes[place]) == min(range(CODES), key=lambda i: distances[i])
    torch.testing.assert_close(quantized.vectors, vq.lookup(quantized.codes))


def test_vq_loss_is_the_papers(vq: VectorQuantizer) -> None:
    z = torch.randn(6, WIDTH, requires_grad=True)
    quantized = vq(z)
    nearest = vq.embedding.weight[quantized.codes].detach()
    expected = 0.5 * (nearest - z).square().mean() + (nearest - z).square().mean()
    torch.testing.assert_close(quantized.loss, expected)

    quantized.loss.backward()
    # The commitment pulls the encoder, weighted by beta; the codebook loss pulls the codes.
    torch.testing.assert_close(z.grad, 0.5 * 2 * (z - nearest).detach() / z.numel())
    pull = torch.zeros(CODES, WIDTH).index_add(0, quantized.codes, 2 * (nearest - z).detach() / z.numel())
    torch.testing.assert_close(vq.embedding.weight.grad, pull)


def test_vq_gradient_passes_straight_through(vq: VectorQuantizer) -> None:
    z = torch.randn(6, WIDTH, requires_grad=True)
    weight = torch.randn(6, WIDTH)
    (vq(z).vectors * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert vq.embedding.weight.grad is None


def test_vq_codes_do_not_depend_on_the_precision_around(vq: VectorQuantizer) -> None:
    z = torch.randn(200, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = vq(z)
    assert torch.equal(inside.codes, vq(z).codes)
    assert inside.loss.dtype == inside.vectors.dtype == torch.float32


def test_revived_codes_are_chosen_again(vq: VectorQuantizer) -> None:
    vectors = torch.randn(40, WIDTH) + 10
    before, dead = vq.embedding.weight.detach().clone(), torch.tensor([1, 5, 7])
    assert len(set(vq(vectors).codes.tolist())) == 1
    vq.revive(dead, vectors)
    after = vq.embedding.weight.detach()
    kept = [i for i in range(CODES) if i not in dead]
    assert torch.equal(after[kept], before[kept])
    for code in dead:
        assert (after[code] == vectors).all(dim=1).any(), "moved onto one of the vectors"
    assert set(vq(vectors).codes.tolist()) <= set(dead.tolist())
    vq.revive(torch.empty(0, dtype=torch.int64), vectors)
    assert torch.equal(vq.embedding.weight, after)


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_codes_and_vectors_are_one_to_one(levels: tuple[int, ...]) -> None:
    fsq = FiniteScalarQuantizer(levels)
    vectors = fsq.lookup(torch.arange(math.prod(levels)))
    assert fsq.width == len(levels)
    assert vectors.shape == (math.prod(levels), len(levels))
    assert len({tuple(v) for v in vectors.tolist()}) == math.prod(levels)
    assert vectors.min() >= -1
    assert vectors.max() <= 1
    for channel, count in zip(vectors.T, levels, strict=True):
        steps = channel.unique().diff()
        assert len(channel.unique()) == count
        torch.testing.assert_close(steps, torch.full((count - 1,), 1 / (count // 2)))


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_reaches_every_code_and_looks_up_what_it_made(levels: tuple[int, ...]) -> None:
    fsq = FiniteScalarQuantizer(levels)
    # For every channel two values close to the ends of each level's interval, n - 1/2 .. n + 1/2 within the bound.
    axes = []
    for count in levels:
        half_width, offset = (count - 1) * (1 + 1e-3) / 2, 0.5 if count % 2 == 0 else 0.0
        lowest, highest = -half_width - offset + 1e-4, half_width - offset - 1e-4
        bounded = [n - count // 2 + side for n in range(count) for side in (-0.49, 0.49)]
        inside = [min(max(value, lowest), highest) for value in bounded]
        axes.append([math.atanh((x + offset) / half_width) - math.atanh(offset / half_width) for x in inside])
    vectors = torch.tensor(list(itertools.product(*axes)))
    quantized = fsq(vectors)
    digits = torch.tensor(list(itertools.product(*[[n for n in range(c) for _ in range(2)] for c in levels])))
    radix = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
    assert torch.equal(quantized.codes, (digits * radix).sum(dim=1))
    assert set(quantized.codes.tolist()) == set(range(math.prod(levels)))
    torch.testing.assert_close(quantized.vectors, fsq.lookup(quantized.codes))
    assert quantized.loss == 0


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_is_bounded_whatever_comes_in(levels: tuple[int, ...]) -> None:
    fsq = FiniteScalarQuantizer(levels)
    extreme = torch.tensor([-1e30, -100.0, -1.0, 0.0, 1.0, 100.0, 1e30])
    quantized = fsq(extreme[:, None].expand(-1, len(levels)))
    assert quantized.codes.min() == 0
    assert quantized.codes.max() == math.prod(levels) - 1
    torch.testing.assert_close(quantized.vectors, fsq.lookup(quantized.codes))


def test_fsq_gradient_is_that_of_the_bound() -> None:
    fsq = FiniteScalarQuantizer((5, 3))
    z = torch.tensor([[0.3, -0.2], [2.0, 0.1]], requires_grad=True)
    fsq(z).vectors.sum().backward()
    half_width, half = torch.tensor([2.002, 1.001]), torch.tensor([2.0, 1.0])
    expected = (1 - torch.tanh(z.detach()).square()) * half_width / half
    torch.testing.assert_close(z.grad, expected)


def test_fsq_codes_do_not_depend_on_the_precision_around() -> None:
    fsq, z = FiniteScalarQuantizer((8, 5, 5, 5)), torch.randn(500, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fsq(z).codes, fsq(z.clone()).codes)


def test_fsq_has_nothing_to_save() -> None:
    assert not FiniteScalarQuantizer((8, 5)).state_dict()


@pytest.mark.parametrize(
    ("counts", "share", "perplexity"),
    [
        ([3, 3, 3, 3], 1.0, 4.0),
        ([9, 0, 0, 0], 0.25, 1.0),
        ([2, 2, 0, 0], 0.5, 2.0),
        ([3, 1, 0, 0], 0.5, math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
)
def test_usage(counts: list[int], share: float, perplexity: float) -> None:
    found = usage(torch.tensor(counts))
    assert float(found[0]) == pytest.approx(share)
    assert float(found[1]) == pytest.approx(perplexity)


def test_usage_before_anything_was_counted() -> None:
    share, perplexity = usage(torch.zeros(4, dtype=torch.int64))
    assert (float(share), float(perplexity)) == (0.0, 1.0)
