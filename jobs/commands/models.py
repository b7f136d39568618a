"""osdface models: versions in the MLflow registry."""

from pathlib import Path
from typing import Annotated

import typer

from jobs import console

app = typer.Typer(help="Model versions: register, promote, trace.")
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
        from pipelines import evaluate  # torch and diffusers, for which a version without metrics need not wait

        values = evaluate.flat_metrics(metrics)
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
