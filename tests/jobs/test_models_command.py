"""osdface models import-official and export, from the command line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import console
from jobs.cli import app
from osdface import bundle, presets
from osdface.base import new_base, save_base
from osdface.generator import OneStepGenerator
from osdface.prompts.vre import VisualEmbedder

TINY = presets.preset("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    base = new_base(TINY)
    save_base(base, made / "base")
    model, none = OneStepGenerator.from_parts(TINY, base, VisualEmbedder(TINY.vre)), bundle.Provenance()
    bundle.save(model, made / "model", preset="tiny", seed=0, base=made / "base", provenance=none)
    return made / "model"


def answer(capfd, *arguments) -> dict:
    code = console.run(app, [*map(str, arguments), "--json"])
    return json.loads(capfd.readouterr().out) | {"code": code}


def arguments(release: Path, folder: Path, out: Path) -> list:
    return [
        "models", "import-official", "--vre", release / "associate_2.ckpt", "--lora", release / bundle.LORA,
        "--base", folder / "base", "--out", out, "--preset", "tiny", "--vre-input", "once",
    ]  # fmt: skip


def test_out_and_in_again(folder, tmp_path, home, capfd):
    told = answer(capfd, "models", "export", folder, "--format", "official", "--out", tmp_path / "release")
    assert told["code"] == 0
    assert told["files"] == ["associate_2.ckpt", "embedding_change_weights.pth", bundle.LORA]
    assert any("twice, this model once" in note for note in told["notes"])
    adapter = ["--adapter", tmp_path / "release" / "embedding_change_weights.pth"]
    again = arguments(tmp_path / "release", folder, tmp_path / "again")
    told = answer(capfd, *again, *adapter, "--register")
    assert (told["code"], told["version"], told["vre_input"], told["left_out"]) == (0, "1", "once", {})
    assert told["bundle_digest"] == bundle.digest(tmp_path / "again")
    assert told["lora"]["rank"] == 64
    for name in (bundle.LORA, bundle.VRE, bundle.ADAPTER):
        before, after = load_file(folder / name), load_file(tmp_path / "again" / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    told = answer(capfd, "models", "export", "models:/osdface/1", "--format", "diffusers", "--out", tmp_path / "d")
    assert "unet/config.json" in told["files"]
    refused = answer(capfd, *again, *adapter)
    assert (refused["code"], "is there already" in refused["error"]) == (1, True)


@pytest.mark.parametrize("flags", [[], ["--cat", "--adapter", "a.pth"]])
def test_the_variant_without_adapter_is_asked_for(folder, tmp_path, capfd, flags):
    told = answer(capfd, *arguments(tmp_path, folder, tmp_path / "out"), *flags)
    assert told["code"] == 2
    assert "--cat" in told["error"]
