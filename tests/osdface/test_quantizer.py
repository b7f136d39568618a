"""Eq. 5 to 7 of the paper against direct transcriptions."""

import pytest
import torch

from osdface.quantizer import VectorQuantizer, code_counts, perplexity, quantization_loss


def test_forward_takes_the_nearest_code_and_passes_the_gradient_straight_through():
    quantizer = VectorQuantizer(7, 3)
    torch.nn.init.normal_(quantizer.embedding.weight)
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    out = quantizer(z)
    codes = quantizer.embedding.weight
    for b in range(2):
        for y in range(4):
            for x in range(5):
                nearest = (codes - z[b, :, y, x]).square().sum(1).argmin()
                assert out.indices[b, y * 5 + x] == nearest
                torch.testing.assert_close(out.z[b, :, y, x], codes[nearest])
    upstream = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((out.z * upstream).sum(), z, retain_graph=True)
    torch.testing.assert_close(gradient, upstream)


@pytest.mark.parametrize(("beta_on", "to_codes", "to_z"), [("commitment", 1.0, 0.25), ("codebook", 0.25, 1.0)])
def test_loss_and_both_of_its_gradients(beta_on, to_codes, to_z):
    z, codes = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    loss = quantization_loss(z, codes, 0.25, beta_on)
    squared = ((z - codes) ** 2).mean()
    torch.testing.assert_close(loss, 1.25 * squared)
    by_z, by_codes = torch.autograd.grad(loss, (z, codes))
    difference = 2 * (z - codes) / z.numel()
    torch.testing.assert_close(by_z, to_z * difference)
    torch.testing.assert_close(by_codes, -to_codes * difference)


def transcription(quantizer: VectorQuantizer, z: torch.Tensor, count: int) -> torch.Tensor:
    """The published selection, one picture at a time, as a walk over sorted positions."""
    pictures = []
    for picture in z:
        tokens = picture.flatten(1).T
        distance = torch.cdist(tokens.double(), quantizer.embedding.weight.double()) ** 2
        nearest, codes = distance.min(1)
        chosen: list[int] = []
        for position in nearest.argsort():
            if int(codes[position]) not in chosen and len(chosen) < count:
                chosen.append(int(codes[position]))
        rows = torch.zeros(count, tokens.shape[1])
        rows[: len(chosen)] = quantizer.embedding.weight[chosen]
        pictures.append(rows)
    return torch.stack(pictures)


@pytest.mark.parametrize("used", [40, 6])
def test_nearest_distinct_is_the_published_selection_for_any_batch(used):
    torch.manual_seed(used)
    quantizer = VectorQuantizer(50, 8)
    torch.nn.init.normal_(quantizer.embedding.weight)
    quantizer.embedding.weight.data[used:] += 1000  # never the nearest
    z = torch.randn(3, 8, 8, 8)
    rows = quantizer.nearest_distinct(z, 12)
    torch.testing.assert_close(rows, transcription(quantizer, z, 12))
    if used < 12:
        assert (rows[:, used:] == 0).all()


def test_nearest_positions_keep_codes_that_come_twice():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(10, 8)
    torch.nn.init.normal_(quantizer.embedding.weight)
    z = torch.randn(3, 8, 8, 8)
    rows = quantizer.nearest_positions(z, 20)
    for picture, found in zip(z, rows, strict=True):
        distance = torch.cdist(picture.flatten(1).T.double(), quantizer.embedding.weight.double())
        nearest, codes = distance.min(1)
        expected = quantizer.embedding.weight[codes[nearest.argsort()[:20]]]
        torch.testing.assert_close(found, expected)
        assert len(found.unique(dim=0)) < 20


def test_perplexity_counts_codes_in_even_use():
    assert perplexity(code_counts(torch.arange(16), 32)) == pytest.approx(16, rel=1e-4)
    assert perplexity(code_counts(torch.zeros(9, dtype=torch.long), 32)) == pytest.approx(1, rel=1e-4)


def test_codes_are_counted():
    assert code_counts(torch.tensor([[3, 1], [3, 3]]), 5).tolist() == [0, 1, 0, 3, 0]


def test_half_precision_does_not_take_one_code_for_another():
    torch.manual_seed(0)
    quantizer, z = VectorQuantizer(64, 16), 10 + torch.randn(1, 16, 8, 8) / 20
    torch.nn.init.normal_(quantizer.embedding.weight, 10, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        indices = quantizer(z).indices
    assert torch.equal(indices, quantizer(z).indices)
