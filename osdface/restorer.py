"""Picture in, picture out: one aligned face, a whole picture, or every face found in a photograph."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from osdface import bundle, faces, lean, photograph
from osdface.errors import UsageError, UserError
from osdface.folding import fold
from osdface.generator import LatentChoice, OneStepGenerator
from osdface.identity import similarities
from osdface.modes import Dtype, Execution, FaceMode, Wishes
from osdface.pictures import OutputType, Picture, from_array, to_array
from osdface.presets import VISUAL_PROMPTS
from osdface.prompts.vre import VisualEmbedder

# Pictures in a pass. On CPUs a batch is no faster, and each picture of 512 pixels adds 0.7 GiB.
BATCH, CPU_BATCH = 16, 4
DTYPES = {name: getattr(torch, name) for name in get_args(Dtype)}


class RestoredFace(NamedTuple):
    """One face of a photograph.

    box: (left, top, right, bottom) in its pixels; crop: the restored face, (size, size), as the result's picture;
    landmarks: (3, 2), centres of left and right eye, base of the nose; identity: how much the face restored is still
    that person's (`osdface.identity.similarities`), None where that isn't measured.
    """

    box: tuple[int, int, int, int]
    score: float
    crop: Any
    landmarks: np.ndarray
    identity: float | None = None


class Result(NamedTuple):
    """image: the restored picture, of the kind that was asked for; faces: those restored, left to right."""

    image: Any
    faces: list[RestoredFace]


class Restorer:
    """The one-step restorer of a bundle, LoRA merged, ready to run.

    size: pixels of a side, at which square pictures and faces are restored. latent: "mode" of the VAE's distribution,
    the same picture every time, or a "sample" of it, as the published program has it.
    """

    def __init__(self, generator: OneStepGenerator, size: int, latent: LatentChoice = "mode", batch: int = BATCH):
        if latent not in get_args(LatentChoice):
            raise UsageError(f"latent '{latent}' does not exist; known: {', '.join(get_args(LatentChoice))}")
        self.generator = generator
        self.size = size
        self.latent: LatentChoice = latent
        self.batch = batch
        self.config: bundle.BundleConfig | None = None
        self.path: Path | None = None

    @classmethod
    def load(
        cls,
        ref: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        latent: LatentChoice = "mode",
        trained: bool = True,
        verify: bool = True,
        execution: Execution = "plain",
    ) -> "Restorer":
        """Load a bundle by reference: a folder, models:/NAME/VERSION, models:/NAME@ALIAS, or an alias.

        trained=False gives its generator as it was before training; verify=False skips the digests of its files.
        execution="folded" is faster on CPUs and rounds more coarsely (`osdface.folding`): the picture of the published
        program that is missed by 2.5e-5 otherwise was missed by 1.9e-3. "lean" does the same in little memory.
        Raises UserError where there is no such bundle, or it is damaged; UsageError for what does not exist or go
        together.
        """
        path, dtype = bundle.resolve(ref), _dtype(dtype)
        if execution not in get_args(Execution):
            raise UsageError(f"execution '{execution}' does not exist; known: {', '.join(get_args(Execution))}")
        if execution == "lean":
            if (torch.device(device).type, dtype, trained) != ("cpu", torch.float32, True):
                raise UsageError("execution 'lean' is for trained models on a CPU in float32: choose another")
            config, _ = bundle.checked(path, verify)
            generator: OneStepGenerator = lean.load(path)
        else:
            config, generator = bundle.load(path, trained=trained, check=verify)
            generator = fold(generator) if execution == "folded" else _merged(generator)
        batch = CPU_BATCH if torch.device(device).type == "cpu" else BATCH
        restorer = cls(generator, config.architecture().size, latent, batch).to(device, dtype)
        restorer.config, restorer.path = config, path
        return restorer

    from_pretrained = load

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> "Restorer":
        """Move the networks to a device, a dtype, or both; returns the restorer itself.

        Raises UserError where there is no such device, or not enough memory on it.
        """
        chosen = None if dtype is None else _dtype(dtype)
        try:
            self.generator.to(device=device, dtype=chosen)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise UserError(f"device '{device}' cannot be used here ({str(error).splitlines()[0]})") from None
        return self

    def enable_tiling(self) -> "Restorer":
        """Let the VAE work on overlapping tiles where a picture is larger than its base's `sample_size` (768 pixels).

        Large pictures then need less memory and come out slightly different. Returns the restorer itself.
        """
        self.generator.vae.enable_tiling()
        return self

    def compile(self, **options: Any) -> "Restorer":
        """Compile the networks, each at its first use for each shape; `options` are those of `torch.compile`.

        Returns the restorer itself.
        """
        vae, embedder = self.generator.vae, self.generator.embedder
        seeing = [embedder.encoder] if isinstance(embedder, VisualEmbedder) else []
        for network in (*seeing, vae.encoder, self.generator.unet, vae.decoder):
            network.compile(**options)
        return self

    @torch.inference_mode()
    def codes(self, images: Tensor) -> Tensor:
        """Visual prompts before the adapter: (B, 3, H, W) in [0, 1] -> (B, n, d), those that `restore` uses.

        Raises UserError for a model whose prompts do not look at the picture.
        """
        kind = self.generator.embedder.kind
        if kind not in VISUAL_PROMPTS:
            raise UserError(f"this model has no codes: its prompts, of kind '{kind}', are the same for every picture")
        return self.generator.codes(self._inputs(images))

    @torch.inference_mode()
    def restore(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """One network pass: (B, 3, H, W) floats in [0, 1] -> float32 in [0, 1] on the CPU.

        Square pictures come back at `self.size`, as published (bilinear, aligned corners); others at their own size,
        padded inside to what the network needs. generator: draws the noise of `latent="sample"`, picture by picture:
        a batch gets what its pictures would get one after the other. Raises UsageError for tensors of another kind.
        """
        inputs = self._inputs(images)
        height, width = images.shape[-2:]
        if height == width:
            height = width = self.size
        noise = self._noise(inputs, generator) if self.latent == "sample" else None
        restored = self.generator(inputs, noise).image[..., :height, :width]
        return (restored.float() / 2 + 0.5).clamp(0, 1).cpu()

    def __call__(
        self,
        image: Picture | Sequence[Picture],
        faces: FaceMode = "auto",
        strength: float = 1.0,
        output_type: OutputType = "pil",
        *,
        generator: Generator | None = None,
        identity: bool = True,
    ) -> Any:
        """Restore a picture -> Result, or a list of them -> list of Results, their faces in common batches.

        image: PIL image, array (`osdface.pictures.to_array`) or path. faces: "aligned": each is one aligned face;
        "whole": each goes through the network as it is; "auto": aligned faces as such, in photographs every face found
        is restored and pasted back, the rest stays untouched. strength: the part of the change that is made, 0 to 1.
        output_type: "pil", "np", "pt" (float in [0, 1]) or "array" (uint8). generator: as in `restore`. identity:
        whether the faces' identity is compared. Raises UserError for what is no picture.
        """
        if not 0 <= strength <= 1:
            raise UsageError(f"strength {strength}: give a number from 0 (the picture as it is) to 1")
        if faces not in get_args(FaceMode):
            raise UsageError(f"faces '{faces}' does not exist; known: {', '.join(get_args(FaceMode))}")
        several = isinstance(image, list | tuple)
        pictures: list[Any] = list(image) if isinstance(image, list | tuple) else [image]
        given = [to_array(picture) for picture in pictures]
        results = [
            self._finished(picture, result, strength, output_type)
            for picture, result in zip(given, self._restored(given, faces, generator, identity), strict=True)
        ]
        return results if several else results[0]

    def _restored(
        self, images: list[np.ndarray], mode: FaceMode, generator: Generator | None, identity: bool
    ) -> list[Result]:
        """Results of uint8 RGB pictures (H, W, 3), as such."""
        if mode == "whole":
            return [Result(_to_uint8(self.restore(_to_tensor(image)[None], generator))[0], []) for image in images]
        found = [self._crops(image, mode) for image in images]
        restored = iter(self.restore_crops([crop for crops in found for _, crop, _ in crops], generator))
        results = []
        for image, crops in zip(images, found, strict=True):
            result = self._paste(image, [(*known, next(restored)) for known in crops])
            results.append(_compared(result, [crop for _, crop, _ in crops]) if identity else result)
        return results

    def restore_crops(self, crops: Sequence[np.ndarray], generator: Generator | None = None) -> list[np.ndarray]:
        """Aligned faces (size, size, 3) uint8, in batches -> (size, size, 3) float32 in [0, 1]; as `restore`."""
        restored: list[np.ndarray] = []
        for start in range(0, len(crops), self.batch):
            tensors = [_to_tensor(crop) for crop in crops[start : start + self.batch]]
            restored += list(self.restore(torch.stack(tensors), generator).permute(0, 2, 3, 1).numpy())
        return restored

    def _crops(self, image: np.ndarray, mode: FaceMode) -> list:
        """(face, crop, matrix) for every face to restore in a picture."""
        found = photograph.plan(image, self.size, Wishes(faces=mode), faces.DlibFrontal())
        return [(crop.face, crop.crop, crop.matrix) for crop in found.crops]

    def _paste(self, image: np.ndarray, restored: list) -> Result:
        image, found = image.copy(), []
        for face, _, matrix, crop in restored:
            faces.paste_into(image, crop * 255, matrix)
            found.append(RestoredFace(face.box, face.score, (crop * 255).round().astype(np.uint8), face.landmarks))
        return Result(image, found)

    def _finished(self, given: np.ndarray, result: Result, strength: float, output_type: OutputType) -> Result:
        """The result at `strength`, as `output_type`; crops stay wholly restored."""
        image = result.image
        if strength < 1:
            before = _to_tensor(given)[None]
            if given.shape != image.shape:  # a square picture as a whole comes back at the model's size
                before = F.interpolate(before, image.shape[:2], mode="bilinear", align_corners=True)
            image = _to_uint8(before + strength * (_to_tensor(image)[None] - before))[0]
        found = [face._replace(crop=from_array(face.crop, output_type)) for face in result.faces]
        return Result(from_array(image, output_type), found)

    def _noise(self, inputs: Tensor, generator: Generator | None) -> Tensor:
        count, *shape = self.generator.latent_shape(inputs)
        device = generator.device if generator else "cpu"
        return torch.stack([torch.randn(shape, generator=generator, device=device) for _ in range(count)])

    def _inputs(self, images: Tensor) -> Tensor:
        """What the networks see, in [-1, 1].

        Squares are scaled to the model's size; others have their last row and column repeated up to what the network
        needs.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or not images.numel():
            raise UsageError(f"{images.dtype} {tuple(images.shape)}: give pictures (B, 3, H, W), floats in [0, 1]")
        images = images.to(next(self.generator.parameters()).device, torch.float32)
        height, width = images.shape[-2:]
        if height == width:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=True)
            height = width = self.size
        step = self._multiple()
        images = F.pad(images, (0, -width % step, 0, -height % step), mode="replicate")
        return (images * 2 - 1).to(next(self.generator.parameters()).dtype)

    def _multiple(self) -> int:
        """Pixels that height and width must be a multiple of: VAE's and UNet's downsamplings together."""
        vae_levels = len(self.generator.vae.config.block_out_channels)
        unet_levels = len(self.generator.unet.config.block_out_channels)
        return 2 ** (vae_levels - 1 + unet_levels - 1)


def _compared(result: Result, before: list[np.ndarray]) -> Result:
    """The result with how much each face is still that person's."""
    compared = similarities(before, [face.crop for face in result.faces])
    found = zip(result.faces, compared, strict=True)
    return result._replace(faces=[face._replace(identity=value) for face, value in found])


def _merged(generator: OneStepGenerator) -> OneStepGenerator:
    """The generator with its LoRA in the UNet's own weights."""
    generator.unet.fuse_lora()
    generator.unet.unload_lora()
    return generator


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UsageError(f"dtype '{dtype}' does not exist here; known: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1).float() / 255


def _to_uint8(images: Tensor) -> np.ndarray:
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
