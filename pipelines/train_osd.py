"""Stage 2, realistic face alignment (section 3.3): the one-step generator against its latent discriminator."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface import bundle, presets
from osdface.base import load_base
from osdface.config import Strict
from osdface.diffusion import forward_diffusion
from osdface.discriminators import LatentDiscriminator
from osdface.generator import LatentChoice, OneStepGenerator
from osdface.identity import DlibIdentity, chips_from_aligned
from osdface.losses import adversarial
from osdface.losses.identity import identity_loss
from osdface.losses.perceptual import Grey, PerceptualDistance
from osdface.prompts.vre import VisualEmbedder
from pipelines.report import sheet_of_tensors
from pipelines.tracking import git_revision
from pipelines.train_vre import load_vre
from pipelines.training import Duration, Metrics, Optimizer, Phase, Step, TrainConfig, frozen


class OSDLosses(Strict):
    """Weights of eq. 12; the paper gives none. A weight of 0 leaves the term, and its network, out."""

    mse: float = 1.0
    ea_dists: float = 1.0  # eq. 14; needs the DISTS and VGG16 weights
    identity: float = 0.1  # eq. 13; with dlib's network, where the paper has an ArcFace
    adversarial: float = 0.01  # eq. 15
    grey: Grey = "mean"  # how EA-DISTS sees edges; both published variants


class OSDConfig(TrainConfig):
    """Configuration of `osdface train osd`."""

    base: Path
    vre: Path
    duration: Duration
    generator: Optimizer
    discriminator: Optimizer
    losses: OSDLosses = OSDLosses()
    latent: LatentChoice = "sample"  # of the LQ picture; the published program samples
    timesteps: tuple[int, int] = (0, 999)  # t of eq. 15 and 16, both ends included

    def weights(self) -> list[str]:
        wanted = {"ea_dists": ["dists", "vgg16"], "identity": ["dlib_identity"]}
        return [name for term, names in wanted.items() if getattr(self.losses, term) for name in names]


class OSDStage:
    """One phase: generator and discriminator in alternate steps, an engine each."""

    Config = OSDConfig

    def __init__(self, config: OSDConfig, device: torch.device, origin: dict[str, Any]):
        self.config, self.origin = config, origin
        preset = presets.preset(config.preset)
        base = load_base(config.base)
        embedder = VisualEmbedder.from_autoencoder(load_vre(config.vre, preset))
        self.discriminator = LatentDiscriminator(base.unet, preset.latent_discriminator, config.seed).to(device)
        self.generator = OneStepGenerator.from_parts(preset, base, embedder, config.seed).to(device)
        self.alpha_bar = base.scheduler.alphas_cumprod.to(device)
        weights = config.losses
        self.ea_dists = PerceptualDistance("ea_dists", "vgg16", weights.grey).to(device) if weights.ea_dists else None
        self.identity = DlibIdentity().to(device) if weights.identity else None

    def state(self) -> dict[str, Tensor]:
        modules = nn.ModuleDict({"generator": self.generator, "discriminator": self.discriminator})
        return {name: parameter for name, parameter in modules.named_parameters() if parameter.requires_grad}

    def phases(self) -> Iterator[Phase]:
        engines = {
            "generator": (self.generator, self.config.generator),
            "discriminator": (self.discriminator, self.config.discriminator),
        }
        yield Phase("osd", self.config.duration, engines, self.step)

    def step(self, step: Step) -> Metrics:
        """One generator step (eq. 12), then one discriminator step (eq. 16) on the same pictures."""
        generator, discriminator = step.engines["generator"], step.engines["discriminator"]
        lq = step.batch["lq"]
        sampled = self.config.latent == "sample"
        restored = generator(lq, step.draw(torch.randn, self.generator.latent_shape(lq)) if sampled else None)
        losses = self._reconstruction(restored.image, step.batch["hq"])
        prompt = restored.prompt.detach()
        with frozen(discriminator.module) as judge:
            losses["adversarial"] = adversarial.generator_loss(judge(*self._diffused(step, restored.latent), prompt))
        weights = self.config.losses
        generator.backward(sum(getattr(weights, name) * loss for name, loss in losses.items()))
        generator.step()

        with torch.no_grad():
            z = self.generator.encode(step.batch["hq"])
        real = discriminator(*self._diffused(step, z), prompt)
        fake = discriminator(*self._diffused(step, restored.latent.detach()), prompt)
        loss = adversarial.discriminator_loss(real, fake)
        discriminator.backward(loss)
        discriminator.step()
        accuracy = {"accuracy_real": (real > 0).float().mean(), "accuracy_fake": (fake < 0).float().mean()}
        return {name: value.detach() for name, value in losses.items()} | {"discriminator": loss.detach()} | accuracy

    def _reconstruction(self, restored: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms of eq. 12 that compare pictures."""
        losses = {"mse": F.mse_loss(restored, target)}
        unit = (restored / 2 + 0.5, target / 2 + 0.5)
        if self.ea_dists:
            losses["ea_dists"] = self.ea_dists(*unit)
        if self.identity:
            losses["identity"] = identity_loss(self.identity, *(chips_from_aligned(images) for images in unit))
        return losses

    def _diffused(self, step: Step, z: Tensor) -> tuple[Tensor, Tensor]:
        """F(z, t) of eq. 15 and 16 at a random t for each picture, and that t."""
        first, last = self.config.timesteps
        t = step.draw(functools.partial(torch.randint, first, last + 1), z.shape[:1])
        return forward_diffusion(z, step.draw(torch.randn, z.shape), self.alpha_bar[t]), t

    @torch.no_grad()
    def drawings(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """LQ | restored | HQ."""
        restored = self.generator(batch["lq"]).image
        return {"sheet": sheet_of_tensors({"LQ": batch["lq"], "restored": restored, "HQ": batch["hq"]})}

    @torch.no_grad()
    def validate(self, batch: dict[str, Any]) -> Metrics:
        """MSE of the restored pictures."""
        return {"mse": F.mse_loss(self.generator(batch["lq"]).image, batch["hq"])}

    def save(self, folder: Path) -> None:
        """The model bundle."""
        provenance = bundle.Provenance(**self.origin, git_revision=git_revision())
        config = self.config
        bundle.save(
            self.generator, folder, preset=config.preset, seed=config.seed, base=config.base, provenance=provenance
        )
