"""Picture in, picture out: one aligned face, a whole picture, or every face found in a photograph."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osdface import bundle, faces, photograph
from osdface.generator import LatentChoice, OneStepGenerator
from osdface.modes import FaceMode, Wishes
from osdface.presets import preset


class RestoredFace(NamedTuple):
    """box: (left, top, right, bottom) in pixels of the photograph; crop: the restored face (size, size, 3) uint8."""

    box: tuple[int, int, int, int]
    score: float
    crop: np.ndarray


class Result(NamedTuple):
    """image: uint8 RGB of the input's size; faces: those restored, left to right."""

    image: np.ndarray
    faces: list[RestoredFace]


class Restorer:
    """The one-step restorer of a bundle, LoRA merged, ready to run."""

    def __init__(self, generator: OneStepGenerator, size: int, latent: LatentChoice = "mode", batch: int = 16):
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
        device: str = "cpu",
        dtype: str = "float32",
        latent: LatentChoice = "mode",
        trained: bool = True,
        verify: bool = True,
    ) -> "Restorer":
        """Load a bundle by reference; `trained=False` gives its generator as it was before training."""
        path = bundle.resolve(ref)
        config, generator = bundle.load(path, trained=trained, check=verify)
        generator.unet.fuse_lora()
        generator.unet.unload_lora()
        restorer = cls(generator.to(device, getattr(torch, dtype)), preset(config.preset).size, latent)
        restorer.config, restorer.path = config, path
        return restorer

    @torch.inference_mode()
    def codes(self, images: Tensor) -> Tensor:
        """Visual prompts before the adapter: (B, 3, H, W) in [0, 1] -> (B, n, d)."""
        return self.generator.embedder(self._inputs(images))

    @torch.inference_mode()
    def restore(self, images: Tensor) -> Tensor:
        """One network pass: (B, 3, H, W) in [0, 1] -> [0, 1] on the CPU.

        Square pictures come back at `self.size`, as published (bilinear, aligned corners); others at their own size,
        padded inside to what the network needs.
        """
        height, width = images.shape[-2:]
        if height == width:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=True)
            height = width = self.size
        step = self._multiple()
        images = F.pad(images, (0, -width % step, 0, -height % step), mode="replicate")
        inputs = self._inputs(images)
        noise = torch.randn(self.generator.latent_shape(inputs)) if self.latent == "sample" else None
        restored = self.generator(inputs, noise).image[..., :height, :width]
        return (restored.float() / 2 + 0.5).clamp(0, 1).cpu()

    def __call__(self, images: Sequence[np.ndarray], mode: FaceMode = "auto") -> list[Result]:
        """Restore uint8 RGB pictures (H, W, 3), the faces of all of them in common batches.

        mode "aligned": each is one aligned face; "whole": each goes through the network as it is; "auto": aligned
        faces as such, in photographs every face found is restored and pasted back, the rest stays untouched.
        """
        if mode == "whole":
            return [Result(_to_uint8(self.restore(_to_tensor(image)[None]))[0], []) for image in images]
        found = [self._crops(image, mode) for image in images]
        restored = iter(self.restore_crops([crop for crops in found for _, crop, _ in crops]))
        results = []
        for image, crops in zip(images, found, strict=True):
            results.append(self._paste(image, [(*known, next(restored)) for known in crops]))
        return results

    def restore_crops(self, crops: Sequence[np.ndarray], seed: int | None = None) -> list[np.ndarray]:
        """Aligned faces (size, size, 3) uint8, in batches -> (size, size, 3) float32 in [0, 1].

        With `latent="sample"` and a seed each face is drawn as if it were the first: the same alone and among others.
        """
        alone = self.latent == "sample" and seed is not None
        batch, restored = 1 if alone else self.batch, []
        for start in range(0, len(crops), batch):
            images = torch.stack([_to_tensor(crop) for crop in crops[start : start + batch]])
            restored += list(self._seeded(images, seed).permute(0, 2, 3, 1).numpy())
        return restored

    def restore_whole(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        """One pass over a picture (H, W, 3) float32 in [0, 1] -> the same, at the size that `restore` gives it."""
        return self._seeded(torch.from_numpy(image).permute(2, 0, 1)[None], seed)[0].permute(1, 2, 0).numpy()

    def _seeded(self, images: Tensor, seed: int | None) -> Tensor:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return self.restore(images)

    def _crops(self, image: np.ndarray, mode: FaceMode) -> list:
        """(face, crop, matrix) for every face to restore in a picture."""
        found = photograph.plan(image, self.size, Wishes(faces=mode), faces.DlibFrontal())
        return [(crop.face, crop.crop, crop.matrix) for crop in found.crops]

    def _paste(self, image: np.ndarray, restored: list) -> Result:
        image, found = image.copy(), []
        for face, _, matrix, crop in restored:
            faces.paste_into(image, crop * 255, matrix)
            found.append(RestoredFace(face.box, face.score, (crop * 255).round().astype(np.uint8)))
        return Result(image, found)

    def _inputs(self, images: Tensor) -> Tensor:
        parameter = next(self.generator.parameters())
        return (images * 2 - 1).to(parameter)

    def _multiple(self) -> int:
        """Pixels that height and width must be a multiple of: VAE's and UNet's downsamplings together."""
        vae_levels = len(self.generator.vae.config.block_out_channels)
        unet_levels = len(self.generator.unet.config.block_out_channels)
        return 2 ** (vae_levels - 1 + unet_levels - 1)


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1).float() / 255


def _to_uint8(images: Tensor) -> np.ndarray:
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
