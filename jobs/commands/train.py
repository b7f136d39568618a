"""osdface train: the three trainings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import configs, console, options
from osdface.config import load

app = typer.Typer(
    help="Train the base prior, stage 1 (VRE) and stage 2 (the one-step generator) on Ray Train and DeepSpeed."
)
Data = Annotated[
    str | None,
    typer.Option(help="The pair dataset to train on: a folder or URL; else what the configuration says."),
]


def base(
    out: options.Out,
    data: Data = None,
    config: options.Config = "tiny",
    set: options.Set = [],  # noqa: B006
    address: options.Address = None,
) -> dict:
    """Train a small VAE and latent UNet: only where SD 2.1-base isn't there."""
    from pipelines.train_base import BaseConfig

    settings = load(BaseConfig, configs.find(config or "tiny", "base"), set, data=data, out=out)
    return _train("base", settings, {}, address)


console.command(app, "base", "osdface train base --config tiny --data pairs --out base")(base)


def vre(
    out: options.Out,
    data: Data = None,
    config: options.Config = "tiny",
    set: options.Set = [],  # noqa: B006
    address: options.Address = None,
) -> dict:
    """Stage 1: HQ dictionary, LQ dictionary, association."""
    from pipelines.train_vre import VREConfig

    settings = load(VREConfig, configs.find(config or "tiny", "vre"), set, data=data, out=out)
    return _train("vre", settings, {}, address)


console.command(app, "vre", "osdface train vre --config tiny --data pairs --out vre")(vre)


def osd(
    base: Annotated[Path, typer.Option(help="The base model: a diffusers folder.")],
    vre: Annotated[Path, typer.Option(help="The output of `osdface train vre`.")],
    out: options.Out,
    data: Data = None,
    config: options.Config = "tiny",
    set: options.Set = [],  # noqa: B006
    address: options.Address = None,
) -> dict:
    """Stage 2: the one-step generator with LoRA against the latent discriminator; writes a model bundle."""
    from osdface.base import base_digest, sha256
    from pipelines.train_osd import OSDConfig

    settings = load(OSDConfig, configs.find(config or "tiny", "osd"), set, data=data, base=base, vre=vre, out=out)
    console.existing(vre / "lq.safetensors", "stage-1 output; make one with `osdface train vre`")
    inputs = {"base": (base, base_digest(base)), "vre": (vre, sha256(vre / "lq.safetensors"))}
    return _train("osd", settings, inputs, address)


console.command(app, "osd", "osdface train osd --config tiny --data pairs --base base --vre vre --out model")(osd)


def _train(stage: str, settings: Any, inputs: dict[str, tuple[Path, str]], address: str | None) -> dict:
    from pipelines.launch import launch

    with console.progress("steps") as progress:
        trained = launch(stage, settings, inputs, address, progress)
    if not trained.fresh:
        console.say(f"{trained.out} is already there, from the same configuration and data")
    result = {"out": str(trained.out), "run_id": trained.run_id, "digest": trained.digest}
    console.table(result)
    return result
