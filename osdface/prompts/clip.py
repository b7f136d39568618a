"""One fixed sentence's features from a frozen CLIP text encoder: a text as Stable Diffusion sees it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osdface.errors import UserError
from osdface.presets import VREShape
from osdface.prompts.protocol import Embedder

SENTENCE = "a sharp photograph of a face, high quality"  # no paper gives one
PARTS = ("text_encoder/config.json", "tokenizer")


class Text(Embedder):
    """Features (n, width), the same for every picture -> (B, n, width). A bundle keeps them, not their encoder."""

    features: Tensor

    def __init__(self, count: int, width: int):
        super().__init__("clip")
        self.register_buffer("features", torch.zeros(count, width))

    def forward(self, lq: Tensor) -> Tensor:
        return self.features.expand(len(lq), -1, -1)


def embedder(shape: VREShape, width: int) -> Text:
    return Text(shape.prompts, width)


def adapter(shape: VREShape, width: int) -> nn.Identity:
    return nn.Identity()


def read(folder: Path, shape: VREShape, width: int) -> Text:
    """SENTENCE's features, `shape.prompts` tokens, from diffusers' `text_encoder/` and `tokenizer/` in `folder`.

    The last layer's, after its norm, as diffusers' Stable Diffusion pipelines take them. Raises UserError where
    transformers or a part is missing, or cannot be read, or the features are not `width` wide.
    """
    if missing := [part for part in PARTS if not (folder / part).exists()]:
        raise UserError(
            f"{folder}: has no {' and no '.join(missing)}, which prompts of kind 'clip' are made with; give a "
            "diffusers folder with its text_encoder/ and tokenizer/ as prompt.folder"
        )
    features = _features(folder, shape.prompts)
    if features.shape[-1] != width:
        raise UserError(
            f"{folder}: its text encoder's features are {features.shape[-1]} wide, the base's UNet takes {width}; give "
            "the text encoder that belongs to the base"
        )
    text = Text(shape.prompts, width)
    text.features.copy_(features)
    return text


@torch.no_grad()
def _features(folder: Path, count: int) -> Tensor:
    """(count, d) of SENTENCE, filled up to `count` tokens."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError:
        raise UserError("prompts of kind 'clip' need the package transformers: `pip install transformers`") from None
    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder, found = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32, use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
        faults = [f"{name} is missing" for name in sorted(found["missing_keys"])]  # they would be filled at random
        if len(tokenizer) != encoder.config.vocab_size:  # a tokenizer without its files has three words
            faults.append(f"it knows {encoder.config.vocab_size} tokens, its tokenizer {len(tokenizer)}")
        tokens = tokenizer(SENTENCE, padding="max_length", max_length=count, truncation=True, return_tensors="pt")
        features = encoder.eval()(tokens.input_ids).last_hidden_state[0]
    except Exception as error:  # of many kinds, where files are missing or damaged
        faults = (str(error) or type(error).__name__).splitlines()
    if faults:
        raise UserError(f"{folder}: its text encoder cannot be used: {faults[0]}")
    return features
