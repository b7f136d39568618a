"""Stage 2, realistic face alignment (section 3.3): the one-step generator against its latent discriminator."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from osdface import bundle, identity, presets, prompts
from osdface.base import Base, check_architecture, load_base, load_part
from osdface.config import Strict
from osdface.diffusion import forward_diffusion
from osdface.discriminators import LatentDiscriminator, LatentOptions
from osdface.errors import UsageError, UserError
from osdface.generator import LatentChoice, OneStepGenerator, Restored
from osdface.losses import adversarial, perceptual
from osdface.losses.adversarial import LatentLoss
from osdface.losses.identity import identity_loss
from osdface.losses.perceptual import FeatureChoice, Grey, Kind, PerceptualDistance
from osdface.presets import VISUAL_PROMPTS
from osdface.prompts import PromptChoice, read_embedder
from osdface.prompts.protocol import Embedder
from pipelines import latents
from pipelines.latents import CachedPairs
from pipelines.pairs.reading import PairDataset
from pipelines.report import sheet_of_tensors
from pipelines.tracking import git_revision
from pipelines.train_vre import load_vre
from pipelines.training import Duration, LoRAOptimizer, Metrics, Optimizer, Phase, Progress, Step, TrainConfig, frozen


class OSDLosses(Strict):
    """Weights of eq. 12; the paper gives none. A weight of 0 leaves the term, and its network, out."""

    mse: float = 1.0
    perceptual: float = 1.0  # eq. 14, lambda_per
    identity: float = 0.1  # eq. 13, lambda_ID
    adversarial: float = 0.01  # eq. 15, lambda_dis
    # The step at which the discriminator begins, as in VQGAN's training; not in the paper.
    adversarial_start: int = Field(default=0, ge=0)
    # The share of pictures, at least one of a micro-batch, that all terms but MSE look at: their networks cost more
    # than a small generator, and a mean over fewer pictures is still their mean.
    share: float = Field(default=1.0, gt=0, le=1)


class Perceptual(Strict):
    """The perceptual term. "ea_dists" is the paper's; the others are table 5's and its ancestors'.

    features: VGG16, as published, or dlib's face network; "auto" is VGG16 if its files are there. grey: how edges see
    colours; the published program has both.
    """

    kind: Kind = "ea_dists"
    features: FeatureChoice = "auto"
    grey: Grey = "mean"


class Adversarial(LatentOptions):
    """The adversarial terms. timesteps: t of eq. 15 and 16, both ends included; "t in [0, T]" in the paper."""

    loss: LatentLoss = "softplus"
    timesteps: tuple[int, int] = (0, 999)


class OSDConfig(TrainConfig):
    """Configuration of `osdface train osd`.

    init: a bundle whose LoRA, adapter, prompts and base training starts from; then neither base nor vre is given.
    identity_network: "auto" is an ArcFace if its file is there, as in the paper, else dlib's network. cache: "latents"
    computes what the frozen encoders make of every pair once, before training; latents: where, which is found then.
    """

    base: Path | None = None
    vre: Path | None = None
    init: Path | None = None
    prompt: PromptChoice = PromptChoice()
    duration: Duration
    generator: LoRAOptimizer
    discriminator: LoRAOptimizer
    losses: OSDLosses = OSDLosses()
    perceptual: Perceptual = Perceptual()
    identity_network: str = "auto"
    adversarial: Adversarial = Adversarial()
    latent: LatentChoice = "sample"  # of the LQ picture; the published program samples
    cache: Literal["none", "latents"] = "none"
    latents: str | None = None

    def settled(self) -> "OSDConfig":
        """With the features and the identity network by name."""
        features = perceptual.choose_features(self.perceptual.features, self.perceptual.kind)
        return self.model_copy(
            update={
                "perceptual": self.perceptual.model_copy(update={"features": features}),
                "identity_network": identity.choose(self.identity_network),
            }
        )

    def check(self) -> None:
        """Look at what training reads before a worker does: base, VRE or bundle, and the networks of the losses.

        Raises UsageError where the configuration does not say what to start from, once; UserError or MissingWeights
        naming the file that is missing, damaged, or of another network.
        """
        self._check_start()
        preset = presets.preset(self.preset)
        if self.init:
            bundle.verify(self.init)
        else:
            prompts.check(self.prompt, preset.vre, check_architecture(self.base or Path()))
        if self.vre:
            load_vre(self.vre, preset)
        _networks(self.settled())

    def _check_start(self) -> None:
        if self.init and (self.base or self.vre):
            raise UsageError("--init starts from a bundle, which has its base and its VRE: leave out --base and --vre")
        if not self.init and not self.base:
            raise UsageError("give --base (a diffusers folder) and --vre, or a bundle to start from as --init")
        visual = self.prompt.kind in VISUAL_PROMPTS
        if not self.init and visual != bool(self.vre):
            needs = "need a trained VRE: give --vre" if visual else "look at no picture: leave out --vre"
            raise UsageError(f"prompts of kind '{self.prompt.kind}' {needs}")

    def prepared(self, progress: Progress | None, address: str | None) -> "OSDConfig":
        if self.cache == "none":
            return self
        place = latents.make(self, functools.partial(_encoders, self), progress, address)
        return self.model_copy(update={"latents": place})

    def pairs(self, split: str) -> PairDataset:
        if not self.latents:
            return super().pairs(split)
        return CachedPairs(self.folder, split, self.latents, twins=self.twins)

    @property
    def base_folder(self) -> Path:
        """Of the base that training starts from."""
        return bundle.base_folder(self.init, bundle.read_config(self.init)) if self.init else self.base or Path()

    @property
    def base_url(self) -> str:
        """Where that was fetched from; "" where it is a folder of this machine's."""
        place = bundle.read_config(self.init).base.path if self.init else self.fetch.get("base", "")
        return place if "://" in place else ""


def _encoders(config: OSDConfig) -> latents.Encoders:
    """The frozen parts that see a picture."""
    config = config.here()
    if config.init:
        generator = bundle.load_trainable(config.init)[1]
        return latents.Encoders(generator.vae, generator.embedder)
    width = check_architecture(config.base_folder)
    vae = load_part(config.base_folder, "vae", torch.float32)
    return latents.Encoders(vae.requires_grad_(False), _embedder(config, width).requires_grad_(False))


def _embedder(config: OSDConfig, width: int) -> Embedder:
    """The frozen part of the configuration's prompts, `width` wide."""
    preset = presets.preset(config.preset)
    autoencoder = load_vre(config.vre, preset) if config.vre else None
    shape = autoencoder.shape if autoencoder else preset.vre
    return read_embedder(config.prompt, shape, width, autoencoder)


def _networks(config: OSDConfig) -> tuple[PerceptualDistance | None, identity.IdentityNetwork | None]:
    """The frozen networks of a settled configuration's losses; None where a loss is off."""
    term = config.perceptual
    features = perceptual.choose_features(term.features, term.kind)
    return (
        PerceptualDistance(term.kind, features, term.grey) if config.losses.perceptual else None,
        identity.load(config.identity_network) if config.losses.identity else None,
    )


class OSDStage:
    """One phase: generator and discriminator in alternate steps, an engine each."""

    Config = OSDConfig

    def __init__(self, config: OSDConfig, device: torch.device, origin: dict[str, Any]):
        self.config, self.origin = config.settled(), origin
        preset = presets.preset(config.preset)
        self.seed = bundle.read_config(config.init).seed if config.init else config.seed  # before any training
        base = load_base(config.base_folder)
        self.discriminator = LatentDiscriminator(
            base.unet, preset.latent_discriminator, config.seed, config.adversarial
        ).to(device)
        self.generator = self._generator(preset, base).to(device)
        self.alpha_bar = base.scheduler.alphas_cumprod.to(device)
        if config.activation_checkpointing:
            self.generator.enable_gradient_checkpointing()
            self.discriminator.enable_gradient_checkpointing()
        perceptual_distance, identity_network = _networks(self.config)
        self.perceptual = perceptual_distance and perceptual_distance.to(device)
        self.identity = identity_network and identity_network.to(device)

    def _generator(self, preset: presets.Preset, base: Base) -> OneStepGenerator:
        config = self.config
        if config.init:
            start, generator = bundle.load_trainable(config.init, base)
            if start.preset != config.preset or start.prompt != config.prompt.kind:
                raise UserError(
                    f"{config.init}: a bundle of preset '{start.preset}' with prompts of kind '{start.prompt}'; set "
                    f"preset and prompt.kind to these (they are '{config.preset}' and '{config.prompt.kind}')"
                )
            return generator
        embedder = _embedder(config, base.unet.config.cross_attention_dim)
        shape = getattr(embedder, "shape", preset.vre)  # with the input of the VRE that was trained
        preset = preset.model_copy(update={"prompt": config.prompt.kind, "vre": shape})
        return OneStepGenerator.from_parts(preset, base, embedder, config.seed)

    def state(self) -> dict[str, Tensor]:
        modules = nn.ModuleDict({"generator": self.generator, "discriminator": self.discriminator})
        return {name: parameter for name, parameter in modules.named_parameters() if parameter.requires_grad}

    def phases(self) -> Iterator[Phase]:
        engines: dict[str, tuple[nn.Module, Optimizer]] = {"generator": (self.generator, self.config.generator)}
        if self.config.losses.adversarial:
            engines["discriminator"] = (self.discriminator, self.config.discriminator)
        yield Phase("osd", self.config.duration, engines, self.step)

    def step(self, step: Step) -> Metrics:
        """One generator step (eq. 12), then one discriminator step (eq. 16) on the same pictures."""
        generator, discriminator = step.engines["generator"], step.engines.get("discriminator")
        if step.index < self.config.losses.adversarial_start:
            discriminator = None
        restored = generator(step.batch["lq"], *self._known(step))
        some = Restored(*(part[: self._judged(step)] for part in restored))
        terms = self._compared(some.image, step.batch["hq"][: len(some.image)])
        terms["mse"] = F.mse_loss(restored.image, step.batch["hq"])
        if discriminator:
            with frozen(discriminator.module) as judge:
                logits = judge(*self._diffused(step, some.latent), some.prompt.detach())
            terms["adversarial"] = adversarial.generator_loss(logits, self.config.adversarial.loss)
        generator.backward(sum(getattr(self.config.losses, name) * loss for name, loss in terms.items()))
        generator.step()
        metrics = self._named(terms)
        return metrics | self._judge(step, discriminator, some) if discriminator else metrics

    def _judged(self, step: Step) -> int:
        """How many of a micro-batch's pictures, which are in random order, the other networks see: the first ones."""
        return max(1, round(self.config.losses.share * len(step.batch["hq"])))

    def _judge(self, step: Step, discriminator: Any, restored: Restored) -> Metrics:
        """The discriminator's step (eq. 16), real and fake latents in one pass."""
        z, count = step.batch.get("hq_latent"), len(restored.latent)
        if z is None:
            with torch.no_grad():
                z = self.generator.encode(step.batch["hq"][:count])
        seen = (self._diffused(step, latent) for latent in (z[:count], restored.latent.detach()))
        both, t = (torch.cat(parts) for parts in zip(*seen, strict=True))
        real, fake = discriminator(both, t, restored.prompt.detach().repeat(2, 1, 1)).chunk(2)
        loss = adversarial.discriminator_loss(real, fake, self.config.adversarial.loss)
        discriminator.backward(loss)
        discriminator.step()
        return {
            "discriminator": loss.detach(),
            "accuracy_real": (real > 0).float().mean(),
            "accuracy_fake": (fake < 0).float().mean(),
        }

    def _known(self, step: Step) -> tuple[Tensor | None, ...]:
        """What the generator gets beside pictures: noise where the latent is sampled; codes and latent of a cache."""
        batch, sampled = step.batch, self.config.latent == "sample"
        noise = step.draw(torch.randn, self.generator.latent_shape(batch["lq"])) if sampled else None
        known = latents.given(batch, noise)
        return (None, known["codes"], known["z"]) if known else (noise,)

    def _compared(self, restored: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms of eq. 12 that compare pictures, by their names in `losses`."""
        terms = {"mse": F.mse_loss(restored, target)}
        unit = (restored / 2 + 0.5, target / 2 + 0.5)
        if self.perceptual:
            terms["perceptual"] = self.perceptual(*unit)
        if self.identity:
            terms["identity"] = identity_loss(self.identity, *(self.identity.chips(images) for images in unit))
        return terms

    def _named(self, terms: dict[str, Tensor]) -> Metrics:
        """The terms under names that tell the network that computed them: "ea_dists.dlib", "identity.dlib"."""
        names = {
            "perceptual": self.perceptual.name if self.perceptual else "",
            "identity": f"identity.{self.config.identity_network}",
        }
        return {names.get(name, name): value.detach() for name, value in terms.items()}

    def _diffused(self, step: Step, z: Tensor) -> tuple[Tensor, Tensor]:
        """F(z, t) of eq. 15 and 16 at a random t for each picture, and that t."""
        first, last = self.config.adversarial.timesteps
        t = step.draw(functools.partial(torch.randint, first, last + 1), z.shape[:1])
        return forward_diffusion(z, step.draw(torch.randn, z.shape), self.alpha_bar[t]), t

    @torch.no_grad()
    def validate(self, batch: dict[str, Any]) -> Metrics:
        """The terms that compare pictures, with the latent's mode, and PSNR in dB over [-1, 1]."""
        restored, target = self.generator(batch["lq"]).image, batch["hq"]
        psnr = -10 * ((restored.clamp(-1, 1) - target) / 2).square().mean((1, 2, 3)).log10().mean()
        return self._named(self._compared(restored, target)) | {"psnr": psnr}

    @torch.no_grad()
    def drawings(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """LQ | restored | HQ."""
        restored = self.generator(batch["lq"]).image
        return {"sheet": sheet_of_tensors({"LQ": batch["lq"], "restored": restored, "HQ": batch["hq"]})}

    def save(self, folder: Path) -> None:
        """The model bundle."""
        init = bundle.digest(self.config.init) if self.config.init else None
        provenance = bundle.Provenance(**self.origin, git_revision=git_revision(), init=init)
        bundle.save(
            self.generator, folder, preset=self.config.preset, seed=self.seed, base=self.config.base_folder,
            base_url=self.config.base_url, provenance=provenance,
        )  # fmt: skip
