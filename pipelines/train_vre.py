"""Stage 1, the visual representation embedder (section 3.2): HQ dictionary, LQ dictionary, association."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from osdface import presets, ranks
from osdface.autoencoder import Autoencoded, VQAutoencoder
from osdface.config import Strict
from osdface.discriminators import PatchDiscriminator
from osdface.errors import UsageError
from osdface.losses import adversarial
from osdface.losses.adaptive import Adaptive, adaptive_weight
from osdface.losses.adversarial import PatchLoss
from osdface.losses.association import DAEFR_SCALE, Over, association_loss, hit_rate
from osdface.losses.perceptual import StageOneKind, choose_stage1, stage1_distance
from osdface.quantizer import BetaTerm, code_counts, perplexity
from pipelines.dictionary import CodeUse, Health, draw_association, draw_attention, draw_health
from pipelines.report import sheet_of_tensors
from pipelines.training import Duration, Metrics, Optimizer, Phase, Step, TrainConfig, frozen
from pipelines.vre_output import load_start, load_vre, write_output

__all__ = ["VREConfig", "VREStage", "load_vre"]

SCALE = 2.0**12  # a power of two: exact, and keeps fp16's small gradients


class Starts(Strict):
    """The step of each phase from which the discriminator takes part."""

    hq: int = Field(default=0, ge=0)
    lq: int = Field(default=0, ge=0)
    association: int = Field(default=0, ge=0)


class VRELosses(Strict):
    """Weights and variants of equations 7 to 11. A weight of 0 leaves the term, and its network, out."""

    perceptual: float = 1.0  # lambda_per of eq. 8
    # Whose features: VGG19's as eq. 7 is written; "lpips" (over VGG16) in the ancestors' code; "dlib", those of dlib's
    # face network, which needs no download, in neither. "auto": the first of the three whose files are there.
    features: Literal["auto"] | StageOneKind = "vgg19"
    adversarial: float = 0.8  # lambda_dis of eq. 8
    adversarial_start: Starts = Starts()  # not in the paper; DAEFR: 30001 for dictionaries, 11 for association
    patch_loss: PatchLoss = "hinge"  # "hinge" in the ancestors' code, "log" as eq. 7 is written
    adaptive: Adaptive = "all"  # the ancestors' factor of lambda_dis, each "rank" its own; "none" as eq. 8 is written
    adaptive_limit: float = Field(default=1e4, gt=0)  # the ancestors'
    beta: float = 0.25  # eq. 7
    beta_on: BetaTerm = "commitment"  # eq. 7; "codebook" in the ancestors' code
    association: float = 1.0  # lambda_assoc of the last phase; 0 before it
    association_over: Over = "picture"  # eq. 9; "batch" in DAEFR's code; "all" is that over all ranks
    association_scale: float = DAEFR_SCALE  # the inverse temperature; 1 as eq. 9 is written
    # What is associated: "features" before quantisation, as eq. 9's text and DAEFR's code; "codes" is a reading of the
    # text's "diagonal correlation within VQ dictionaries", with the gradient straight through.
    association_of: Literal["features", "codes"] = "features"

    @model_validator(mode="before")
    @classmethod
    def _one_start(cls, data: Any) -> Any:
        start = data.get("adversarial_start") if isinstance(data, dict) else None
        if isinstance(start, int):
            data = data | {"adversarial_start": dict.fromkeys(Starts.model_fields, start)}
        return data


class DictionaryConfig(Strict):
    """When a code counts as dead, and what becomes of it.

    window: optimisation steps without use, by any rank. restart: every `window` steps of a phase, dead codes become
    encoder features of that step's pictures, drawn over all ranks; not in the paper, nor in its ancestors.
    """

    window: int = Field(default=1000, ge=1)
    restart: bool = False


class VREConfig(TrainConfig):
    """Configuration of `osdface train vre`.

    init: a stage-1 output, both of whose autoencoders are trained on; or a bundle, whose LQ encoder and dictionary are,
    while its decoder, the HQ autoencoder and, as always, the discriminators start afresh. input: how the tokenizer's
    input is normalised; what `init` has, or else the preset's.
    """

    hq: Duration
    lq: Duration
    association: Duration
    optimizer: Optimizer
    losses: VRELosses = VRELosses()
    dictionary: DictionaryConfig = DictionaryConfig()
    init: Path | None = None
    lq_from: Literal["fresh", "hq"] = "fresh"  # the LQ autoencoder, without `init`; DAEFR trains both from scratch
    # What the last phase trains: both autoencoders and both discriminators, as DAEFR; or those of LQ alone.
    association_trains: Literal["both", "lq"] = "both"
    input: presets.VREInput | None = None  # the paper: "once"; the published program normalises "twice"
    patch_norm: presets.PatchNorm | None = None  # of the patch discriminators; none: the preset's

    @model_validator(mode="after")
    def _restart_where_it_works(self) -> "VREConfig":
        if self.dictionary.restart and self.zero_stage == 3:
            raise ValueError("dictionary.restart cannot change codes that zero_stage 3 has partitioned: use 0, 1 or 2")
        return self

    def settled(self) -> "VREConfig":
        chosen = self.losses.model_copy(update={"features": choose_stage1(self.losses.features)})
        return self.model_copy(update={"losses": chosen})

    def undivided(self) -> list[str]:
        losses, found = self.losses, []
        if losses.adversarial and losses.adaptive != "none":
            found.append("losses.adaptive")
        if losses.adversarial and (self.patch_norm or presets.preset(self.preset).patch_discriminator.norm) != "group":
            found.append("patch_norm")
        if losses.association and losses.association_over != "picture":
            found.append("losses.association_over")
        return [*found, "dictionary.restart"] if self.dictionary.restart else found

    def check(self) -> None:
        if self.losses.perceptual:
            stage1_distance(choose_stage1(self.losses.features))
        if self.init:
            load_start(self.init, presets.preset(self.preset))


class Branches(nn.ModuleDict):
    """Modules that go through one engine together: {"hq": x, "lq": y} -> {"hq": f(x), "lq": g(y)}."""

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)

    def forward(self, inputs: dict[str, Tensor], *options: Any) -> dict[str, Any]:
        return {name: self[name](x, *options) for name, x in inputs.items()}


class VREStage:
    """Three phases over two autoencoders and their patch discriminators.

    Any number of ranks trains the same, to rounding, where each term of the losses is a mean over rows or is taken over
    all ranks: with losses.adaptive "all" or "none", losses.association_over "picture" or "all", patch_norm "sync_batch"
    or "group". Any number of accumulated micro-batches does with "none", "picture" and "group".
    """

    Config = VREConfig

    def __init__(self, config: VREConfig, device: torch.device, origin: dict[str, Any]):
        self.config = config
        preset = presets.preset(config.preset)
        start = load_start(config.init, preset) if config.init else None
        if start and config.input not in (None, start.input):
            raise UsageError(f"input '{config.input}': {config.init} was trained with '{start.input}'; leave input out")
        vre_input = config.input or (start.input if start else preset.vre.input)
        self.shape = preset.vre.model_copy(update={"input": vre_input})
        judge = preset.patch_discriminator.model_copy(
            update={"norm": config.patch_norm or preset.patch_discriminator.norm}
        )
        torch.manual_seed(config.seed)
        self.autoencoders = Branches({name: VQAutoencoder(self.shape) for name in ("hq", "lq")}).to(device)
        self.discriminators = Branches({name: PatchDiscriminator(judge) for name in ("hq", "lq")}).to(device)
        self.use = {name: CodeUse(self.shape.codes).to(device) for name in ("hq", "lq")}
        for name, tensors in start.tensors.items() if start else ():
            self.autoencoders[name].load_state_dict(tensors, strict=False)  # read strictly; a bundle has no decoder
        if config.activation_checkpointing:
            for name in self.autoencoders:
                self.autoencoders[name].recompute_activations()
        losses = config.losses
        self.perceptual = stage1_distance(choose_stage1(losses.features)).to(device) if losses.perceptual else None
        self._last: tuple[str, int] | None = None  # phase and step of the last micro-batch

    def state(self) -> dict[str, Tensor]:
        modules = nn.ModuleDict({"autoencoders": self.autoencoders, "discriminators": self.discriminators})
        trained = {name: parameter for name, parameter in modules.named_parameters() if parameter.requires_grad}
        use = {f"use.{name}.age": use.age for name, use in self.use.items()}
        return trained | dict(modules.named_buffers()) | use

    def phases(self) -> Iterator[Phase]:
        yield self._phase("hq", self.config.hq, ["hq"])
        if self.config.lq_from == "hq" and not self.config.init:
            self.autoencoders["lq"].load_state_dict(self.autoencoders["hq"].state_dict())
            self.use["lq"].age.copy_(self.use["hq"].age)
        yield self._phase("lq", self.config.lq, ["lq"])
        both = self.config.association_trains == "both"
        yield self._phase("association", self.config.association, ["hq", "lq"] if both else ["lq"])

    def _phase(self, name: str, duration: Duration, branches: list[str]) -> Phase:
        engines: dict[str, tuple[nn.Module, Optimizer]] = {
            "autoencoder": (Branches({b: self.autoencoders[b] for b in branches}), self.config.optimizer),
            "discriminator": (Branches({b: self.discriminators[b] for b in branches}), self.config.optimizer),
        }
        return Phase(name, duration, engines, functools.partial(self._step, name))

    def _step(self, phase: str, step: Step) -> Metrics:
        """One autoencoder step, then one discriminator step, over the branches that the engines hold."""
        autoencoder, discriminator = step.engines["autoencoder"], step.engines["discriminator"]
        images = {name: self._images(step.batch, name) for name in autoencoder.module}
        weights, metrics = self.config.losses, Metrics()
        new_step, self._last = self._last != (phase, step.index), (phase, step.index)
        if new_step and self.config.dictionary.restart:
            self._restart(step, images)
        adversarial_on = weights.adversarial > 0 and step.index >= getattr(weights.adversarial_start, phase)
        coded: dict[str, Autoencoded] = autoencoder(images, weights.beta, weights.beta_on)
        terms = []
        for name, out in coded.items():
            judge = discriminator.module[name] if adversarial_on else None
            gradient, measured = self._picture_gradient(out, images[name], judge)
            measured |= self._dictionary_metrics(name, out, new_step) | {"vq": out.vq_loss.detach()}
            terms += [(out.image.float() * gradient).sum(), out.vq_loss]
            metrics |= {f"{name}_{key}": value for key, value in measured.items()}
        if phase == "association" and weights.association:
            loss, metrics["association_hits"] = self._association(step, coded)
            terms.append(weights.association * loss)
            metrics["association"] = loss.detach()
        autoencoder.backward(torch.stack(terms).sum())
        autoencoder.step()
        if adversarial_on:
            metrics |= self._discriminator_step(discriminator, images, coded)
        return metrics

    def _picture_gradient(self, out: Autoencoded, target: Tensor, judge: nn.Module | None) -> tuple[Tensor, Metrics]:
        """The gradient at the picture of eq. 8 without L_VQ, (B, 3, S, S), and the terms.

        Taken once for each term, apart from the engine, whose backward pass then has the picture times this as its
        loss: the adaptive weight needs both, and the engine's weights see one backward pass alone.
        """
        weights, target = self.config.losses, target.float()
        image = out.image.detach().float().requires_grad_()
        l1 = F.l1_loss(image, target)
        metrics = {"l1": l1.detach()}
        reconstruction = l1
        if self.perceptual:
            perceptual = self.perceptual(image, target)
            reconstruction = l1 + weights.perceptual * perceptual
            metrics["perceptual"] = perceptual.detach()
        (gradient,) = torch.autograd.grad(reconstruction, image)
        if judge is not None:
            with frozen(judge) as patches:
                loss = adversarial.patch_generator_loss(patches(image.to(out.image.dtype)).float(), weights.patch_loss)
                by_loss = torch.autograd.grad(SCALE * loss, image)[0] / SCALE
            last = out.last.detach().float()
            balance = adaptive_weight(gradient, by_loss, last, weights.adaptive_limit, weights.adaptive)
            gradient = gradient + weights.adversarial * balance * by_loss
            metrics |= {"adversarial": loss.detach(), "adaptive_weight": balance}
        return gradient, metrics

    def _association(self, step: Step, coded: dict[str, Autoencoded]) -> tuple[Tensor, Tensor]:
        """Eq. 10 over the features of both branches, and the share of LQ positions that find their own HQ one."""
        weights = self.config.losses
        if "hq" in coded:
            hq = coded["hq"]
        else:
            with torch.no_grad():
                hq = self.autoencoders["hq"](self._images(step.batch, "hq"))
        of_hq, of_lq = (getattr(out, weights.association_of).float() for out in (hq, coded["lq"]))
        loss = association_loss(of_hq, of_lq, weights.association_over, weights.association_scale)
        return loss, hit_rate(of_hq.detach(), of_lq.detach())

    def _discriminator_step(self, discriminator: Any, images: dict[str, Tensor], coded: dict[str, Any]) -> Metrics:
        real = discriminator(images)
        fake = discriminator({name: out.image.detach() for name, out in coded.items()})
        kind, losses, metrics = self.config.losses.patch_loss, [], Metrics()
        for name in images:
            on_real, on_fake = real[name].float(), fake[name].float()
            losses.append(adversarial.patch_discriminator_loss(on_real, on_fake, kind))
            metrics[f"{name}_accuracy_real"] = (on_real.detach() > 0).float().mean()
            metrics[f"{name}_accuracy_fake"] = (on_fake.detach() < 0).float().mean()
        loss = torch.stack(losses).sum()
        discriminator.backward(loss)
        discriminator.step()
        return metrics | {"discriminator": loss.detach()}

    # The dictionary

    def _dictionary_metrics(self, name: str, out: Autoencoded, new_step: bool) -> Metrics:
        """Perplexity and share of the codes in use by all ranks' micro-batches, and the number of dead codes."""
        counts = ranks.summed(code_counts(out.indices, self.shape.codes))
        self.use[name].observe(counts, new_step)
        dead = len(self.use[name].dead(self.config.dictionary.window))
        used = (counts > 0).float().mean()
        return {"perplexity": perplexity(counts), "codes_used": used, "dead_codes": torch.tensor(float(dead))}

    @torch.no_grad()
    def _restart(self, step: Step, images: dict[str, Tensor]) -> None:
        """Once in a window, make dead codes features of this step's pictures, the same ones on every rank."""
        if step.index == 0 or step.index % self.config.dictionary.window:
            return
        for name in images:
            dead = self.use[name].dead(self.config.dictionary.window)
            features = step.engines["autoencoder"].module[name].features(images[name]).flatten(2).transpose(1, 2)
            drawn = ranks.gathered(step.draw(torch.rand, features.shape[:2])).flatten()
            chosen = ranks.gathered(features).flatten(0, 1)[drawn.argsort()[: len(dead)]]
            replace_rows(self.autoencoders[name].quantize.embedding.weight, dead[: len(chosen)], chosen)
            self.use[name].age[dead[: len(chosen)]] = 0

    # Pictures and figures

    @torch.no_grad()
    def drawings(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Reconstructions ("sheet"), the dictionaries' health, what is associated, and fig. 4's attention maps."""
        images = {name: self._images(batch, name) for name in ("hq", "lq")}
        coded: dict[str, Autoencoded] = self.autoencoders(images)
        attention = {name: self.autoencoders[name].attention(x) for name, x in images.items()}
        features = {name: out.features for name, out in coded.items()}
        columns = {"HQ": images["hq"], "HQ coded": coded["hq"].image, "LQ": images["lq"], "LQ coded": coded["lq"].image}
        return {
            "sheet": sheet_of_tensors(columns),
            "dictionary": draw_health({name: self._health(name, out) for name, out in coded.items()}),
            "association": draw_association(images, features["hq"], features["lq"]),
            "attention": draw_attention(images, attention, features),
        }

    @torch.no_grad()
    def validate(self, batch: dict[str, Any]) -> Metrics:
        """L1, PSNR (dB, over each picture) and perplexity of both branches; how many LQ positions find their HQ one."""
        images = {name: self._images(batch, name) for name in ("hq", "lq")}
        coded: dict[str, Autoencoded] = self.autoencoders(images)
        metrics = {"association_hits": hit_rate(coded["hq"].features, coded["lq"].features)}
        for name, out in coded.items():
            image, target = out.image.float(), images[name].float()
            error = (image.clamp(-1, 1) - target).square().mean((1, 2, 3)) / 4  # of values in [0, 1]
            metrics[f"{name}_l1"] = F.l1_loss(image, target)
            metrics[f"{name}_psnr"] = (-10 * error.clamp(min=1e-10).log10()).mean()
            metrics[f"{name}_perplexity"] = perplexity(code_counts(out.indices, self.shape.codes))
        return metrics

    def _health(self, name: str, out: Autoencoded) -> Health:
        counts = code_counts(out.indices, self.shape.codes)
        # By a forward pass: ZeRO 3 gathers weights for those.
        codes = self.autoencoders[name].quantize.embedding(torch.arange(len(counts), device=counts.device)).float()
        between = torch.cdist(codes, codes).square().fill_diagonal_(torch.inf).amin(1)
        to_code = (out.features.float() - out.codes.float()).square().sum(1).flatten()
        return Health(counts, to_code, between, self.use[name].age)

    def _images(self, batch: dict[str, Any], name: str) -> Tensor:
        """Pictures at the tokenizer's own size, in the branch's precision."""
        size, images = self.shape.size, batch[name]
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="area")
        return images.to(self.autoencoders[name].quant_conv.weight.dtype)

    def save(self, folder: Path) -> None:
        write_output(folder, {name: self.autoencoders[name] for name in ("hq", "lq")}, self.config.preset)


def replace_rows(weight: nn.Parameter, rows: Tensor, values: Tensor) -> None:
    """Write rows of a parameter, and of the fp32 weights that ZeRO 1 and 2 keep of it, between two steps.

    The optimizer's moments stay: those of a code that nothing used have decayed to nothing.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    weight.data[rows] = values.to(weight.dtype)
    if getattr(weight, "_hp_mapping", None) is not None:
        whole = safe_get_full_fp32_param(weight)
        whole[rows] = values.float()
        safe_set_full_fp32_param(weight, whole)
