"""Eq. 7 to 10 and 13 to 16 of the paper against direct transcriptions."""

import math

import pytest
import torch

from osdface.losses import adversarial
from osdface.losses.adaptive import adaptive_weight
from osdface.losses.association import association_loss, found, hit_rate
from osdface.losses.perceptual import sobel


def test_patch_losses_hinge_and_log():
    real, fake = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    hinge = 0.5 * (torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean())
    torch.testing.assert_close(adversarial.patch_discriminator_loss(real, fake), hinge)
    torch.testing.assert_close(adversarial.patch_generator_loss(fake), -fake.mean())
    log = -(torch.log(torch.sigmoid(real)).mean() + torch.log(1 - torch.sigmoid(fake)).mean())
    torch.testing.assert_close(adversarial.patch_discriminator_loss(real, fake, "log"), log)
    torch.testing.assert_close(adversarial.patch_generator_loss(fake, "log"), -torch.log(torch.sigmoid(fake)).mean())


def test_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer_and_is_clamped():
    convolution = torch.nn.Conv2d(5, 3, 3, padding=1)
    last = torch.randn(2, 5, 6, 7)
    image = convolution(last)
    reconstruction, gan = image.abs().mean(), (image**2).sum()
    at_weight = [torch.autograd.grad(x, convolution.weight, retain_graph=True)[0].norm() for x in (reconstruction, gan)]
    at_picture = [torch.autograd.grad(x, image, retain_graph=True)[0] for x in (reconstruction, gan)]
    weight = adaptive_weight(*at_picture, last)
    assert float(weight) == pytest.approx(float(at_weight[0] / (at_weight[1] + 1e-4)), rel=1e-5)
    assert float(adaptive_weight(1000 * at_picture[0], 0 * at_picture[1], last)) == 1e4
    assert float(adaptive_weight(*at_picture, last, limit=1e-3)) == pytest.approx(1e-3)
    assert float(adaptive_weight(*at_picture, last, over="none")) == 1


@pytest.mark.parametrize(("over", "scale"), [("picture", 1.0), ("picture", 1 / 0.07), ("batch", 1 / 0.07)])
def test_association_is_eq_9_and_10(over, scale):
    hq, lq = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)

    def rows(x):
        flat = x.flatten(2).transpose(1, 2)
        return list(flat) if over == "picture" else [flat.flatten(0, 1)]

    losses = []
    for h, l in zip(rows(hq), rows(lq), strict=True):  # noqa: E741
        k = len(h)
        similarity = [[scale * float(torch.cosine_similarity(h[i], l[j], dim=0)) for j in range(k)] for i in range(k)]
        ce_h = ce_l = 0.0
        for i in range(k):
            along_lq = sum(math.exp(similarity[i][j]) for j in range(k))
            along_hq = sum(math.exp(similarity[j][i]) for j in range(k))
            ce_h -= math.log(math.exp(similarity[i][i]) / along_lq) / k
            ce_l -= math.log(math.exp(similarity[i][i]) / along_hq) / k
        losses.append((ce_h + ce_l) / 2)
    expected = sum(losses) / len(losses)
    assert float(association_loss(hq, lq, over, scale)) == pytest.approx(expected, rel=1e-5)


def test_positions_are_found_by_cosine_within_a_picture():
    hq = torch.randn(2, 8, 2, 3)
    lq = 3 * hq
    assert found(hq, lq).tolist() == [list(range(6))] * 2
    lq[0, :, 0, 0] = hq[0, :, 1, 2]
    assert found(hq, lq)[0].tolist() == [5, 1, 2, 3, 4, 5]
    assert float(hit_rate(hq, lq)) == pytest.approx(11 / 12)


def test_latent_losses_are_eq_15_and_16():
    real, fake = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    torch.testing.assert_close(adversarial.generator_loss(fake), -torch.log(d_fake).mean())
    expected = -torch.log(1 - d_fake).mean() - torch.log(d_real).mean()
    torch.testing.assert_close(adversarial.discriminator_loss(real, fake), expected)
    hinge = (torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean()) / 2
    torch.testing.assert_close(adversarial.discriminator_loss(real, fake, "hinge"), hinge)
    torch.testing.assert_close(adversarial.generator_loss(fake, "hinge"), -fake.mean())


@pytest.mark.parametrize(("grey", "weights"), [("mean", [1 / 3] * 3), ("luma", [0.2989, 0.587, 0.114])])
def test_sobel_is_the_published_operator(grey, weights):
    image = torch.rand(1, 3, 6, 7)
    one = sum(w * c for w, c in zip(weights, image[0], strict=True))
    padded = torch.nn.functional.pad(one[None, None], (1, 1, 1, 1))[0, 0]
    kernel_x = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for y in range(6):
        for x in range(7):
            window = padded[y : y + 3, x : x + 3]
            gx, gy = (window * kernel_x).sum(), (window * kernel_x.T).sum()
            expected = torch.sqrt(gx**2 + gy**2 + 1e-6)
            torch.testing.assert_close(sobel(image, grey)[0, 0, y, x], expected)
