"""The base model's folder: what is written opens in diffusers, what is damaged is refused."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from osdface import presets
from osdface.base import base_digest, check_architecture, load_base, new_base, save_base
from osdface.errors import UserError


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_base(new_base(presets.preset("tiny")), tmp_path / "base")
    return tmp_path / "base"


def test_the_folder_is_an_ordinary_diffusers_one(folder):
    loaded = load_base(folder)
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        stock = kind.from_pretrained(folder, subfolder=part).state_dict()
        for name, tensor in getattr(loaded, part).state_dict().items():
            assert torch.equal(stock[name], tensor)
    assert json.loads((folder / "model_index.json").read_text())["unet"][1] == "UNet2DConditionModel"
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_the_digest_is_that_of_configurations_and_weights(folder):
    before = base_digest(folder)
    (folder / "README.md").write_text("notes do not count")
    assert base_digest(folder) == before
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert base_digest(folder) != before


def test_the_folders_own_configuration_counts(folder):
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert load_base(folder).vae.config.scaling_factor == 0.5


def test_a_missing_tensor_is_named_never_made_up(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"unet.*1 tensors are missing, conv_in\.weight"):
        load_base(folder)


def test_what_is_no_base_model_is_said(folder, tmp_path):
    with pytest.raises(UserError, match=r"unet/config\.json.*osdface train base"):
        load_base(tmp_path)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read as a base model"):
        load_base(folder)


def test_pickled_weights_are_not_read(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(UserError, match="cannot be read as a base model"):
        load_base(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels, its VAE makes 8"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "as SDXL's does"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "predicts v_prediction, not epsilon"),
    ],
)
def test_a_base_of_another_architecture_is_refused_from_its_configuration(folder, file, change, message):
    check_architecture(folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(UserError, match=message):
        check_architecture(folder)
    (folder / file).write_text("{")
    with pytest.raises(UserError, match="cannot be read as a configuration"):
        check_architecture(folder)
