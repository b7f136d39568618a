"""The prompt that the UNet's cross-attention sees: interchangeable kinds, a file each.

    vre       the nearest distinct codes of the LQ dictionary, through an adapter: the published model; default
    vre_cat   the nearest positions' codes, two side by side, no adapter: the published variant
    learned   one trained prompt for all pictures, as DFOSD has it
    empty     zeros: a prompt that says nothing
    clip      one fixed sentence's features from a frozen CLIP text encoder

Each has a frozen part, picture -> codes, whose output may be kept, and a trained part, codes -> prompt.
"""

from pathlib import Path

from pydantic import model_validator
from torch import nn

from osdface.autoencoder import VQAutoencoder
from osdface.config import Strict
from osdface.errors import UserError
from osdface.presets import VISUAL_PROMPTS, PromptKind, VREShape
from osdface.prompts import clip, empty, learned, vre, vre_cat
from osdface.prompts.protocol import Embedder, Kind

KINDS: dict[PromptKind, Kind] = {"vre": vre, "vre_cat": vre_cat, "learned": learned, "empty": empty, "clip": clip}


class PromptChoice(Strict):
    """`prompt:` of a configuration. folder: for "clip" alone, one with diffusers' `text_encoder/` and `tokenizer/`."""

    kind: PromptKind = "vre"
    folder: Path | None = None

    @model_validator(mode="after")
    def _folder_where_it_is_read(self) -> "PromptChoice":
        if (self.kind == "clip") != (self.folder is not None):
            raise ValueError("folder is for kind 'clip', which reads its text encoder from it: give both or neither")
        return self


def new_embedder(kind: PromptKind, shape: VREShape, width: int) -> Embedder:
    """A kind's frozen part, its weights to be filled in."""
    return KINDS[kind].embedder(shape, width)


def new_adapter(kind: PromptKind, shape: VREShape, width: int) -> nn.Module:
    """A kind's trained part, fresh. Raises UserError where its prompts cannot be `width` wide."""
    return KINDS[kind].adapter(shape, width)


def read_embedder(
    choice: PromptChoice, shape: VREShape, width: int, autoencoder: VQAutoencoder | None = None
) -> Embedder:
    """A kind's frozen part with its weights: those of stage 1's LQ `autoencoder`, or of the choice's folder.

    Raises UserError where what it needs is missing or of another shape.
    """
    if choice.folder is not None:
        return clip.read(choice.folder, shape, width)
    if choice.kind not in VISUAL_PROMPTS:
        return new_embedder(choice.kind, shape, width)
    if autoencoder is None:
        raise UserError(f"prompts of kind '{choice.kind}' need a trained VRE; make one with `osdface train vre`")
    made = vre.VisualEmbedder if choice.kind == "vre" else vre_cat.PairedEmbedder
    return made.from_autoencoder(autoencoder)
