"""osdface train: the three trainings."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from jobs import configs, console, options
from osdface.config import load, resolved

app = typer.Typer(
    help="Train the base prior, stage 1 (VRE) and stage 2 (the one-step generator) on Ray Train and DeepSpeed."
)
Data = Annotated[
    str | None,
    typer.Option(help="The pair dataset to train on: a folder or URL; else what the configuration says."),
]
Out = Annotated[str, typer.Option(help="Where the result goes: a folder or URL.")]
Workers = Annotated[int | None, typer.Option(help="How many workers; 0 trains in this process, without Ray.")]
Resume = Annotated[
    str,
    typer.Option(help="auto: go on with the run of this configuration and data; never: begin anew; or a run's name."),
]
Init = Annotated[
    str | None,
    typer.Option(help="Go on from what this has learnt: a model reference; for stage 1, its output too."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be trained, and start nothing.")]


def base(
    out: Out,
    data: Data = None,
    config: options.Config = "tiny",
    set: options.Set = [],  # noqa: B006
    address: options.Address = None,
    workers: Workers = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
) -> dict:
    """Train a small VAE and latent UNet: only where SD 2.1-base isn't there."""
    from pipelines.train_base import BaseConfig

    settings = load(BaseConfig, configs.find(config or "tiny", "base"), set, data=data, out=out, workers=workers)
    return _train("base", settings, {}, address, resume, dry_run)


console.command(app, "base", "osdface train base --config tiny --data pairs --out base")(base)


def vre(
    out: Out,
    data: Data = None,
    init: Init = None,
    config: options.Config = "tiny",
    set: options.Set = [],  # noqa: B006
    address: options.Address = None,
    workers: Workers = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
) -> dict:
    """Stage 1: HQ dictionary, LQ dictionary, association."""
    from pipelines.train_vre import VREConfig

    chosen = {"data": data, "out": out, "workers": workers} | _from(init=init)
    settings = load(VREConfig, configs.find(config or "tiny", "vre"), set, **chosen).here()
    return _train("vre", settings, _inputs(init=settings.init), address, resume, dry_run)


console.command(app, "vre", "osdface train vre --config tiny --data pairs --out vre")(vre)


def osd(
    out: Out,
    data: Data = None,
    base: Annotated[str | None, typer.Option(help="The base model: a diffusers folder, or its URL.")] = None,
    vre: Annotated[str | None, typer.Option(help="The output of `osdface train vre`: a folder or URL.")] = None,
    init: Init = None,
    config: options.Config = "tiny",
    set: options.Set = [],  # noqa: B006
    address: options.Address = None,
    workers: Workers = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
) -> dict:
    """Stage 2: the one-step generator with LoRA against the latent discriminator; writes a model bundle."""
    from pipelines.train_osd import OSDConfig

    chosen = {"data": data, "out": out, "workers": workers} | _from(base=base, vre=vre, init=init)
    settings = load(OSDConfig, configs.find(config or "tiny", "osd"), set, **chosen).here()
    inputs = _inputs(base=settings.base, vre=settings.vre, init=settings.init)
    return _train("osd", settings, inputs, address, resume, dry_run)


console.command(app, "osd", "osdface train osd --config tiny --data pairs --base base --vre vre --out model")(osd)


def _from(**given: str | None) -> dict[str, Any]:
    """What a training starts from, as its configuration has it: folders by field, and under "fetch" what is a URL.

    init may be a model reference as well: what it stands for is looked up here.
    """
    from osdface import bundle

    urls = {name: ref for name, ref in given.items() if ref and "://" in ref}
    folders: dict[str, Any] = {name: None if name in urls else ref for name, ref in given.items()}
    if folders.get("init"):
        folders["init"] = bundle.resolve(folders["init"])
    return folders | {"fetch": urls or None}


def _inputs(**folders: Path | None) -> dict[str, tuple[Path, str]]:
    """What a training starts from: name -> folder and the digest of what it holds. Raises UserError for what isn't."""
    return {name: (folder, _digest(folder)) for name, folder in folders.items() if folder}


def _digest(folder: Path) -> str:
    from osdface import bundle
    from osdface.base import base_digest
    from osdface.files import sha256

    if (folder / "lq.safetensors").is_file():
        return sha256(folder / "lq.safetensors")
    return bundle.digest(folder) if (folder / "config.json").is_file() else base_digest(folder)


def _train(
    stage: str, settings: Any, inputs: dict[str, tuple[Path, str]], address: str | None, resume: str, dry_run: bool
) -> dict:
    from pipelines.launch import launch

    if dry_run:
        return _dry_run(stage, settings, inputs, address)
    with console.progress("steps") as progress:
        trained = launch(stage, settings, inputs, address, progress, resume)
    if not trained.fresh:
        console.say(f"{trained.out} is already there, from the same configuration and data")
    result = {"out": str(trained.out), "run_id": trained.run_id, "digest": trained.digest}
    console.table(result)
    return result


def _dry_run(stage: str, settings: Any, inputs: dict[str, tuple[Path, str]], address: str | None) -> dict:
    """The configuration as it would be, its steps, the memory of a worker, and the run that it would go on with."""
    from pipelines import memory, runs
    from pipelines.launch import plan

    planned = plan(stage, settings, inputs, address)
    name, known = runs.choose(stage, planned.digest, planned.identity, "auto")
    config = resolved(planned.config)
    console.say(yaml.safe_dump(config, sort_keys=False).rstrip())
    shown: dict[str, Any] = {f"{phase} steps": steps for phase, steps in planned.steps.items()}
    shown |= {"micro-batch": planned.config.micro_batch, "run": f"{name} ({'goes on' if known else 'new'})"}
    needed = memory.estimate(stage, planned.config)
    shown |= {f"GiB, {part}": round(count / 2**30, 3) for part, count in needed.device.items()}
    shown |= {f"GiB of the host, {part}": round(count / 2**30, 3) for part, count in needed.host.items()}
    console.table(shown | {"GiB of a worker": round(needed.total / 2**30, 2)})
    if warning := memory.warning(needed, planned.config):
        console.say(warning)
    return {"memory": {"device": needed.device, "host": needed.host}} | {
        "config": config,
        "steps": planned.steps,
        "run": name,
        "resumes": bool(known),
        "digest": planned.digest,
    }
