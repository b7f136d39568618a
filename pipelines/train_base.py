"""A small latent diffusion prior from pictures: it stands in for SD 2.1-base where that isn't there.

Two phases: a VAE on the HQ pictures, then a UNet that predicts noise on their latents (section 3.1, forward phase).
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface import presets
from osdface.base import new_base, save_base
from osdface.diffusion import forward_diffusion
from osdface.losses.perceptual import FeatureChoice, PerceptualDistance, choose_features
from pipelines.pairs.reading import PairDataset
from pipelines.report import sheet_of_tensors
from pipelines.training import Duration, Metrics, Optimizer, Phase, Step, TrainConfig


class BaseConfig(TrainConfig):
    """Configuration of `osdface train base`.

    kl, perceptual: weights of these terms of the VAE's loss, as latent diffusion's autoencoders have them beside L1;
    the perceptual one is DISTS over `features`. L1 is a mean here and KL a sum: latent diffusion's 1e-6, beside sums of
    both, would be 1e-10 for 64 pixels, and four times as much for 32.
    """

    vae: Duration
    unet: Duration
    vae_optimizer: Optimizer
    unet_optimizer: Optimizer
    kl: float = 1e-9
    perceptual: float = 0.0
    features: FeatureChoice = "auto"

    def settled(self) -> "BaseConfig":
        """With the features by name, where they are used."""
        if not self.perceptual:
            return self
        return self.model_copy(update={"features": choose_features(self.features, "dists")})

    def check(self) -> None:
        """Raises MissingWeights where the features' file is not there."""
        self.distance()

    def distance(self) -> PerceptualDistance | None:
        """The perceptual term; None where it is off."""
        return PerceptualDistance("dists", choose_features(self.features, "dists")) if self.perceptual else None


class BaseStage:
    """VAE, then UNet."""

    Config = BaseConfig

    def __init__(self, config: BaseConfig, device: torch.device, origin: dict[str, Any]):
        self.config = config
        preset = presets.preset(config.preset)
        torch.manual_seed(config.seed)
        self.base = new_base(preset)
        self.modules = nn.ModuleDict({"vae": self.base.vae, "unet": self.base.unet}).to(device)
        distance = config.distance()
        self.distance = distance and distance.to(device)
        self.alpha_bar = self.base.scheduler.alphas_cumprod.to(device)
        # What stands in the prompt's place: a prior has no picture to look at.
        self.prompt = torch.zeros(1, preset.vre.prompts, self.base.unet.config.cross_attention_dim, device=device)

    def state(self) -> dict[str, Tensor]:
        return self.modules.state_dict(keep_vars=True)

    def phases(self) -> Iterator[Phase]:
        yield Phase("vae", self.config.vae, {"vae": (self.base.vae, self.config.vae_optimizer)}, self._vae_step)
        self.base.vae.requires_grad_(False)
        self._standardise()
        yield Phase("unet", self.config.unet, {"unet": (self.base.unet, self.config.unet_optimizer)}, self._unet_step)

    def _vae_step(self, step: Step) -> Metrics:
        vae, images = step.engines["vae"], step.batch["hq"]
        posterior = vae.module.encode(images).latent_dist
        latent = posterior.mean + posterior.std * step.draw(torch.randn, posterior.mean.shape)
        decoded = vae.module.decode(latent).sample
        l1, kl = F.l1_loss(decoded, images), posterior.kl().mean()
        terms = {"l1": l1, "kl": kl}
        loss = l1 + self.config.kl * kl
        if self.distance:
            terms[self.distance.name] = distance = self.distance(decoded / 2 + 0.5, images / 2 + 0.5)
            loss = loss + self.config.perceptual * distance
        vae.backward(loss)
        vae.step()
        return {name: term.detach() for name, term in terms.items()}

    def _unet_step(self, step: Step) -> Metrics:
        unet, images = step.engines["unet"], step.batch["hq"]
        z = self._encode(images)
        noise = step.draw(torch.randn, z.shape)
        t = step.draw(functools.partial(torch.randint, len(self.alpha_bar)), z.shape[:1])
        prompt = self.prompt.to(z).expand(len(z), -1, -1)
        predicted = unet(forward_diffusion(z, noise, self.alpha_bar[t]), t, prompt).sample
        mse = F.mse_loss(predicted, noise)
        unet.backward(mse)
        unet.step()
        return {"mse": mse.detach()}

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        return self.base.vae.encode(images).latent_dist.mode() * self.base.vae.config.scaling_factor

    @torch.no_grad()
    def _standardise(self) -> None:
        """Give every latent channel mean 0 and deviation 1, over some training pictures, and change no picture.

        A VAE of a short training keeps its details in channels a thirtieth as strong as the others; one scaling factor
        for all, as SD has it, may leave them below what the UNet gets wrong. It goes into the 1x1 convolutions around
        the latent, so that the factor is 1.
        """
        data, vae = PairDataset(self.config.folder, "train"), self.base.vae
        images = data.batch(range(min(64, len(data))))["hq"].to(self.prompt.device)
        z = vae.encode(images.to(next(vae.parameters()))).latent_dist.mode()
        mean, deviation = z.mean((0, 2, 3)), z.std((0, 2, 3))
        means, log_variances = vae.quant_conv.weight.chunk(2)[0], vae.quant_conv.bias.chunk(2)[1]
        means /= deviation[:, None, None, None]
        bias = vae.quant_conv.bias.chunk(2)[0]
        bias.copy_((bias - mean) / deviation)
        log_variances -= 2 * deviation.log()
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
        vae.post_quant_conv.weight *= deviation[:, None, None]
        vae.register_to_config(scaling_factor=1.0)

    @torch.no_grad()
    def drawings(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """HQ picture | through the VAE."""
        return {"sheet": sheet_of_tensors({"HQ": batch["hq"], "VAE": self.base.vae(batch["hq"]).sample})}

    @torch.no_grad()
    def validate(self, batch: dict[str, Any]) -> Metrics:
        """L1 of the VAE's reconstruction."""
        return {"l1": F.l1_loss(self.base.vae(batch["hq"]).sample, batch["hq"])}

    def save(self, folder: Path) -> None:
        save_base(self.base, folder)
