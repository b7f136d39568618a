"""What `train base` does between its phases."""

import torch

from pipelines.pairs.reading import PairDataset
from pipelines.train_base import BaseConfig, BaseStage


def test_latents_are_standardised_and_no_picture_changes(pairs):
    config = BaseConfig(
        preset="tiny", data=str(pairs), out=pairs / "none", batch_size=2, vae={"steps": 0}, unet={"steps": 0},
        vae_optimizer={"lr": 0}, unet_optimizer={"lr": 0},
    )  # fmt: skip
    stage = BaseStage(config, torch.device("cpu"), {})
    images = PairDataset(str(pairs), "train").batch(range(16))["hq"]
    vae = stage.base.vae
    with torch.no_grad():
        vae.quant_conv.weight[:4] *= 20
        vae.quant_conv.bias += 1
        before = vae.encode(images).latent_dist
        z = before.mean + before.std
        pictures = vae.decode(z).sample
    phases = stage.phases()
    next(phases), next(phases)
    with torch.no_grad():
        after = vae.encode(images).latent_dist
        torch.testing.assert_close(vae.decode(after.mean + after.std).sample, pictures, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(stage._encode(images), after.mean)
    assert (before.mean.std((0, 2, 3)) - 1).abs().max() > 0.5
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(8), atol=0.2, rtol=0)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(8), atol=0.3, rtol=0)
