"""osdface models: versions in the MLflow registry, and bundles from and to other programs' files."""

from pathlib import Path
from typing import Annotated

import typer

from jobs import console, options
from osdface.errors import UsageError
from osdface.export import Format
from osdface.presets import VREInput

app = typer.Typer(help="Model versions: register, promote, trace; import and export.")
Name = Annotated[str, typer.Option(help="The registered model's name.")]


def register(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder, made by `osdface train osd`.")],
    name: Name = "osdface",
    metrics: Annotated[
        Path | None, typer.Option(help="metrics.json of `osdface evaluate`, kept with the version.")
    ] = None,
) -> dict:
    """Make a bundle a numbered version of the registry; the same bundle twice is the same version."""
    from pipelines import registry

    values = None
    if metrics:
        from pipelines.evaluation.summary import flat_metrics

        values = flat_metrics(metrics)
    version = registry.register(bundle, name, metrics=values)
    result = version._asdict()
    console.table(result)
    return result


console.command(app, "register", "osdface models register model --metrics evaluation/metrics.json")(register)


def promote(version: Annotated[str, typer.Argument(help="The version's number.")], name: Name = "osdface") -> dict:
    """Verify a version and make it the champion, the one that endpoints serve."""
    from pipelines import registry

    promoted = registry.promote(version, name=name)
    result = promoted._asdict()
    console.table(result)
    return result


console.command(app, "promote", "osdface models promote 3")(promote)


def list_(name: Name = "osdface") -> dict:
    """List the versions of a model."""
    from pipelines import registry

    versions = [version._asdict() for version in registry.versions(name)]
    for version in versions:
        console.table(version)
    return {"versions": versions}


console.command(app, "list", "osdface models list")(list_)


def lineage(ref: Annotated[str, typer.Argument(help="A model reference, or the X-Run-Id of an answer.")]) -> dict:
    """Walk back from a version, or a served picture's X-Run-Id, to the dataset and its sources."""
    from pipelines import registry

    tree = registry.lineage(ref)
    _tree(tree)
    return tree


console.command(app, "lineage", "osdface models lineage champion")(lineage)


def _tree(node: dict, depth: int = 0) -> None:
    for key, value in node.items():
        if isinstance(value, dict):
            console.say("  " * depth + key)
            _tree(value, depth + 1)
        else:
            console.say("  " * depth + f"{key}  {value}")


def import_official(
    vre: Annotated[Path, typer.Option(help="associate_2.ckpt.")],
    lora: Annotated[Path, typer.Option(help="pytorch_lora_weights.safetensors.")],
    base: Annotated[Path, typer.Option(help="SD 2.1-base as a diffusers folder.")],
    out: options.Out,
    adapter: Annotated[Path | None, typer.Option(help="embedding_change_weights.pth.")] = None,
    cat: Annotated[bool, typer.Option("--cat", help="The variant without adapter: 154 codes in pairs.")] = False,
    preset: Annotated[str, typer.Option(help="Architecture of all but the base.")] = "sd21",
    vre_input: Annotated[
        VREInput,
        typer.Option(help="How often the tokenizer's input is normalised; the published program does it twice."),
    ] = "twice",
    lora_alpha: Annotated[
        int | None, typer.Option(min=1, help="Of the LoRA; what its file says, else 16, if absent.")
    ] = None,
    lora_target: Annotated[
        list[str],
        typer.Option(help="A module that has LoRA, by the end of its name; repeatable. The preset's if absent."),
    ] = [],  # noqa: B006
    register: Annotated[bool, typer.Option("--register", help="Make it a version of the registry, too.")] = False,
    name: Name = "osdface",
) -> dict:
    """Make a bundle of the checkpoints that the paper's authors published."""
    from osdface import bundle, official

    if cat == bool(adapter):
        raise UsageError("give either --adapter, or --cat for the variant without one")
    made = official.import_official(
        vre=vre, lora=lora, adapter=adapter, base=base, out=out, preset=preset, vre_input=vre_input, alpha=lora_alpha,
        targets=lora_target,
    )  # fmt: skip
    result: dict = {
        "bundle": str(out),
        "bundle_digest": bundle.digest(out),
        **made.config.model_dump(include={"preset", "vre_input", "prompt", "lora"}),
        "left_out": made.unused,
    }
    if register:
        from pipelines import registry

        result["version"] = registry.register(out, name).version
    console.table(result)
    return result


console.command(
    app,
    "import-official",
    "osdface models import-official --vre associate_2.ckpt --lora pytorch_lora_weights.safetensors "
    "--adapter embedding_change_weights.pth --base sd21-base --out model --register",
)(import_official)


def export(
    model: Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle folder, or another model reference.")],
    format: Annotated[
        Format,
        typer.Option(help="diffusers: base and LoRA; official: the published files; safetensors: merged weights; half: a bundle in float16."),
    ],
    out: options.Out,
) -> dict:
    """Write a model in another program's layout."""
    from osdface import bundle
    from osdface import export as exporting

    notes = exporting.export(bundle.resolve(model), format, out)
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    result = {"out": str(out), "format": format, "files": files, "notes": notes}
    console.table(result | {"files": ", ".join(files), "notes": "; ".join(notes)})
    return result


console.command(app, "export", "osdface models export model --format diffusers --out model-diffusers")(export)
