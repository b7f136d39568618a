"""Stage 1, the visual representation embedder (section 3.2): HQ dictionary, LQ dictionary, association."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from osdface import presets
from osdface.autoencoder import Autoencoded, VQAutoencoder
from osdface.config import Strict
from osdface.discriminators import PatchDiscriminator
from osdface.errors import UserError
from osdface.losses import adversarial
from osdface.losses.adversarial import PatchLoss
from osdface.losses.association import DAEFR_SCALE, association_loss
from osdface.losses.perceptual import VGG19Distance
from osdface.quantizer import BetaTerm, perplexity
from pipelines.report import sheet_of_tensors
from pipelines.training import Duration, Metrics, Optimizer, Phase, Step, TrainConfig, frozen


class VRELosses(Strict):
    """Weights and variants of equations 7 to 11. A weight of 0 leaves the term, and its network, out."""

    perceptual: float = 1.0  # lambda_per; needs VGG19's weights
    adversarial: float = 0.8  # lambda_dis, times the adaptive weight of the ancestors
    adversarial_start: int = 0  # step of a phase from which the discriminator takes part (not in the paper)
    patch_loss: PatchLoss = "hinge"  # "hinge" in the ancestors' code, "log" as eq. 7 is written
    beta: float = 0.25
    beta_on: BetaTerm = "commitment"  # eq. 7; "codebook" in the ancestors' code
    association: float = 1.0  # lambda_assoc of the last phase; 0 before it
    association_over: Literal["picture", "batch"] = "picture"  # eq. 9; "batch" in DAEFR's code
    association_scale: float = DAEFR_SCALE  # not in eq. 9


class VREConfig(TrainConfig):
    """Configuration of `osdface train vre`."""

    hq: Duration
    lq: Duration
    association: Duration
    optimizer: Optimizer
    losses: VRELosses = VRELosses()
    lq_from: Literal["fresh", "hq"] = "fresh"  # what the LQ autoencoder starts from; DAEFR trains both from scratch

    def undivided(self) -> list[str]:
        return ["losses.adversarial"] if self.losses.adversarial else []

    def weights(self) -> list[str]:
        return ["vgg19"] if self.losses.perceptual else []


class Branches(nn.ModuleDict):
    """Modules that go through one engine together: {"hq": x, "lq": y} -> {"hq": f(x), "lq": g(y)}."""

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        return {name: self[name](x) for name, x in inputs.items()}


class VREStage:
    """Three phases over two autoencoders and their patch discriminators."""

    Config = VREConfig

    def __init__(self, config: VREConfig, device: torch.device, origin: dict[str, Any]):
        self.config = config
        preset = presets.preset(config.preset)
        self.shape = preset.vre
        torch.manual_seed(config.seed)
        self.autoencoders = Branches({name: VQAutoencoder(preset.vre) for name in ("hq", "lq")}).to(device)
        self.discriminators = Branches(
            {name: PatchDiscriminator(preset.patch_discriminator) for name in ("hq", "lq")}
        ).to(device)
        self.perceptual = VGG19Distance().to(device) if config.losses.perceptual else None

    def state(self) -> dict[str, Tensor]:
        modules = nn.ModuleDict({"autoencoders": self.autoencoders, "discriminators": self.discriminators})
        return modules.state_dict(keep_vars=True)

    def phases(self) -> Iterator[Phase]:
        yield self._phase("hq", self.config.hq, ["hq"])
        if self.config.lq_from == "hq":
            self.autoencoders["lq"].load_state_dict(self.autoencoders["hq"].state_dict())
        yield self._phase("lq", self.config.lq, ["lq"])
        yield self._phase("association", self.config.association, ["hq", "lq"])

    def _phase(self, name: str, duration: Duration, branches: list[str]) -> Phase:
        engines: dict[str, tuple[nn.Module, Optimizer]] = {
            "autoencoder": (Branches({b: self.autoencoders[b] for b in branches}), self.config.optimizer),
            "discriminator": (Branches({b: self.discriminators[b] for b in branches}), self.config.optimizer),
        }
        return Phase(name, duration, engines, self.step)

    def step(self, step: Step) -> Metrics:
        """One autoencoder step, then one discriminator step, over the branches that the engines hold."""
        autoencoder, discriminator = step.engines["autoencoder"], step.engines["discriminator"]
        images = {name: self._resized(step.batch[name]) for name in autoencoder.module}
        # Through the module: an engine's outputs refuse the extra gradients that the adaptive weight takes.
        coded = autoencoder.module(images)
        adversarial_on = self.config.losses.adversarial > 0 and step.index >= self.config.losses.adversarial_start
        total, metrics = self._autoencoder_loss(images, coded, autoencoder.module, adversarial_on and discriminator)
        autoencoder.backward(total)
        autoencoder.step()
        if adversarial_on:
            real = discriminator(images)
            fake = discriminator({name: out.image.detach() for name, out in coded.items()})
            kind = self.config.losses.patch_loss
            losses = [adversarial.patch_discriminator_loss(real[name], fake[name], kind) for name in images]
            loss = torch.stack(losses).sum()
            discriminator.backward(loss)
            discriminator.step()
            metrics["discriminator"] = loss.detach()
        return metrics

    def _autoencoder_loss(
        self, images: dict[str, Tensor], coded: dict[str, Autoencoded], autoencoders: Any, discriminator: Any
    ) -> tuple[Tensor, Metrics]:
        """Eq. 8 for every branch, and eq. 11 where both are there."""
        weights, metrics = self.config.losses, Metrics()
        total = torch.zeros((), device=next(iter(images.values())).device)
        for name, out in coded.items():
            reconstruction = l1 = F.l1_loss(out.image, images[name])
            if self.perceptual:
                reconstruction = l1 + weights.perceptual * self.perceptual(out.image, images[name])
            total = total + reconstruction + out.vq_loss
            metrics |= {f"{name}_l1": l1.detach(), f"{name}_vq": out.vq_loss.detach()}
            metrics[f"{name}_perplexity"] = perplexity(out.indices, self.shape.codes)
            if discriminator:
                with frozen(discriminator.module[name]) as patches:
                    loss = adversarial.patch_generator_loss(patches(out.image), weights.patch_loss)
                last = autoencoders[name].decoder.conv_out.weight
                balance = adversarial.adaptive_weight(reconstruction, loss, last)
                total = total + weights.adversarial * balance * loss
                metrics |= {f"{name}_adversarial": loss.detach(), f"{name}_adaptive_weight": balance}
        if len(coded) == 2 and weights.association:
            loss = association_loss(
                coded["hq"].features, coded["lq"].features, weights.association_over, weights.association_scale
            )
            total = total + weights.association * loss
            metrics["association"] = loss.detach()
        return total, metrics

    @torch.no_grad()
    def drawings(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """HQ | reconstructed | LQ | reconstructed."""
        images = {name: self._resized(batch[name]) for name in ("hq", "lq")}
        coded = self.autoencoders(images)
        columns = {"HQ": images["hq"], "HQ coded": coded["hq"].image, "LQ": images["lq"], "LQ coded": coded["lq"].image}
        return {"sheet": sheet_of_tensors(columns)}

    @torch.no_grad()
    def validate(self, batch: dict[str, Any]) -> Metrics:
        """L1 of each branch's reconstruction."""
        images = {name: self._resized(batch[name]) for name in ("hq", "lq")}
        return {f"{name}_l1": F.l1_loss(out.image, images[name]) for name, out in self.autoencoders(images).items()}

    def _resized(self, images: Tensor) -> Tensor:
        """Pictures at the tokenizer's own size."""
        size = self.shape.size
        return images if images.shape[-1] == size else F.interpolate(images, (size, size), mode="area")

    def save(self, folder: Path) -> None:
        """`hq.safetensors`, `lq.safetensors` (names of the published tensors) and `config.json`."""
        folder.mkdir(parents=True)
        for name, autoencoder in self.autoencoders.items():
            tensors = {k: v.detach().cpu().contiguous() for k, v in autoencoder.state_dict().items()}
            save_file(tensors, folder / f"{name}.safetensors")
        (folder / "config.json").write_text(json.dumps({"preset": self.config.preset}))


def load_vre(folder: Path, preset: presets.Preset) -> VQAutoencoder:
    """The LQ autoencoder of a finished stage 1. Raises UserError naming what is missing or differs."""
    path = folder / "lq.safetensors"
    if not path.is_file():
        raise UserError(f"{folder}: not a stage-1 output (no lq.safetensors); make one with `osdface train vre`")
    autoencoder = VQAutoencoder(preset.vre)
    try:
        autoencoder.load_state_dict(load_file(path))
    except RuntimeError:
        raise UserError(
            f"{path}: its tensors do not fit preset '{preset.name}'; train it with the same preset"
        ) from None
    return autoencoder
