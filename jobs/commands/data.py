"""osdface data: degraded pairs from pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from jobs import configs, console, options
from osdface.config import load

if TYPE_CHECKING:  # the command line starts without pyarrow
    from pipelines.pairs import Manifest

app = typer.Typer(help="Pair datasets: make, verify, look at.")
Dataset = Annotated[Path, typer.Argument(help="A pair dataset's folder.")]


def synth(
    sources: Annotated[list[Path], typer.Argument(help="Folders of HQ face pictures.")],
    out: options.Out,
    recipe: Annotated[Optional[str], typer.Option(help="A shipped recipe's name, or a YAML file.")] = None,  # noqa: UP045
    variants: Annotated[Optional[int], typer.Option(help="Degraded pictures for each source.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(help="Seed of the degradation.")] = None,  # noqa: UP045
    size: Annotated[Optional[int], typer.Option(help="Pixels of a side.")] = None,  # noqa: UP045
    shard_rows: Annotated[Optional[int], typer.Option(help="Rows of a shard.")] = None,  # noqa: UP045
    workers: Annotated[Optional[int], typer.Option(help="Shards made at a time.")] = None,  # noqa: UP045
    config: options.Config = "tiny",
    set: options.Set = [],  # noqa: B006
    address: options.Address = None,
) -> dict:
    """Turn pictures into dual-stage degraded (LQ, HQ) pairs in Parquet shards, on Ray Data."""
    from pipelines.synthesize import SynthConfig, synthesize

    settings = load(
        SynthConfig, configs.find(config or "tiny", "synth"), set, sources=sources, out=out, recipe=recipe,
        variants=variants, seed=seed, size=size, shard_rows=shard_rows, workers=workers,
    )  # fmt: skip
    with console.progress("pictures") as progress:
        manifest = synthesize(settings, progress, address)
    return _show(out, manifest)


console.command(app, "synth", "osdface data synth faces --out pairs --recipe dual_sequential --size 64")(synth)


def verify(
    dataset: Dataset,
    replay: Annotated[int, typer.Option(min=0, help="Rows to degrade again from their traces.")] = 8,
) -> dict:
    """Check all digests; replay some rows from their own columns, pixel for pixel."""
    from pipelines import pairs

    result = pairs.verify(dataset, replay)._asdict()
    console.table(result)
    return result


console.command(app, "verify", "osdface data verify pairs --replay 16")(verify)


def preview(
    dataset: Dataset, out: options.Out, count: Annotated[int, typer.Option(min=1, help="Pairs shown.")] = 12
) -> dict:
    """Draw a contact sheet of LQ | HQ pairs, from mild to severe."""
    from pipelines import report

    report.pairs_preview(dataset, out, count)
    console.table({"sheet": out})
    return {"sheet": str(out)}


console.command(app, "preview", "osdface data preview pairs --out pairs.png")(preview)


def info(dataset: Dataset) -> dict:
    """Show what a dataset is: digest, recipe, counts."""
    from pipelines import pairs

    return _show(dataset, pairs.read_manifest(dataset))


console.command(app, "info", "osdface data info pairs")(info)


def _show(folder: Path, manifest: "Manifest") -> dict:
    result = {
        "out": str(folder),
        "digest": manifest.digest,
        "recipe": manifest.spec.recipe.name,
        "shards": len(manifest.shards),
    } | manifest.counts.model_dump(mode="json")
    console.table(result)
    return result
