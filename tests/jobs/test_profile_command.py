"""osdface profile, as a user types it."""

import json

from jobs import console
from jobs.cli import app


def test_json_has_the_parts_and_both_ways_of_counting(capfd):
    assert console.run(app, ["profile", "--preset", "tiny", "--measure", "--repeat", "1", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    parts = result["parameters"]
    assert set(parts) == {"vae", "unet", "vre", "adapter", "total"}
    assert parts["total"] == parts["vae"] + parts["unet"] + parts["vre"] + parts["adapter"]
    assert 0 < result["macs"]["conv_linear"]["total"] < result["macs"]["with_attention"]["total"]
    assert result["measured"]["seconds"]["total"] > 0


def test_what_it_prints_names_every_part(capfd):
    assert console.run(app, ["profile", "--preset", "tiny"]) == 0
    shown = capfd.readouterr().out
    for label in ("VAE decoder", "UNet, LoRA merged", "visual representation embedder", "prompt adapter", "2.094"):
        assert label in shown


def test_unknown_presets_types_and_devices_are_one_sentence(capfd):
    for wrong in (["--preset", "sd99"], ["--dtype", "int8"], ["--measure", "--device", "abacus"]):
        assert console.run(app, ["profile", "--preset", "tiny", *wrong]) == 2
        assert wrong[-1] in capfd.readouterr().err
