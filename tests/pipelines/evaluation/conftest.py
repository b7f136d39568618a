"""What the tests of evaluation share: a bundle that changes pictures, an MLflow home, folders of pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osdface import bundle, presets
from osdface.base import load_base, new_base, save_base
from osdface.generator import OneStepGenerator
from osdface.prompts.vre import VisualEmbedder

TINY = presets.preset("tiny")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A bundle of random weights, its adapters not zero."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    save_base(new_base(TINY), folder / "base")
    generator = OneStepGenerator.from_parts(TINY, load_base(folder / "base"), VisualEmbedder(TINY.vre), seed=1)
    for name, parameter in generator.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    provenance = bundle.Provenance(runs={"osd": "0123abcd"}, dataset_digest="d")
    bundle.save(generator, folder / "model", preset="tiny", seed=1, base=folder / "base", provenance=provenance)
    return folder / "model"


@pytest.fixture(scope="session")
def written() -> Callable[..., Path]:
    """A function that writes pictures, by name, to a folder, as noise of a seed where only sizes are given."""

    def write(folder: Path, pictures: dict[str, np.ndarray | int]) -> Path:
        for number, (name, picture) in enumerate(pictures.items()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(picture, int):
                picture = np.random.default_rng(number).integers(0, 256, (picture, picture, 3), np.uint8)
            Image.fromarray(picture).save(folder / name)
        return folder

    return write
