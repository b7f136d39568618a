"""osdface data: the pair datasets."""

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from jobs import configs, console, options
from osdface.config import load, parse
from osdface.errors import UserError
from osdface.files import write

if TYPE_CHECKING:  # the command line starts without pyarrow
    from pipelines.pairs.manifest import Manifest

app = typer.Typer(help="Pair datasets: make, verify, look at, make again, extend, take pictures out.")
Dataset = Annotated[str, typer.Argument(help="A pair dataset: a folder, or a URL of any fsspec filesystem.")]
Place = Annotated[str, typer.Option("--out", help="Where the dataset goes: a folder or URL.")]
Sources = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        help="Folders, zip, tar, WebDataset shards, Parquet, lists, FFHQ; local or URLs. See docs/sources.md."
    ),
]
Workers = Annotated[Optional[int], typer.Option(help="Shards made at a time.")]  # noqa: UP045
Limit = Annotated[Optional[int], typer.Option(help="Pictures taken at most.")]  # noqa: UP045
MaxRejects = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="Stop when more files than this are no pictures to use: a count, or below 1 a share."),
]
Licence = Annotated[Optional[str], typer.Option(help="Name of the sources' licence, for manifest and card.")]  # noqa: UP045
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be made, how large, in what time; write nothing.")
]
Track = Annotated[bool, typer.Option(help="Log the synthesis as an MLflow run.")]


def synth(
    out: Place,
    sources: Sources = None,
    recipe: Annotated[Optional[str], typer.Option(help="A shipped recipe's name, or a YAML file.")] = None,  # noqa: UP045
    variants: Annotated[Optional[int], typer.Option(help="Degraded pictures for each source.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(help="Seed of the degradation.")] = None,  # noqa: UP045
    size: Annotated[Optional[int], typer.Option(help="Pixels of a side.")] = None,  # noqa: UP045
    split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Shares of validation and test: VAL,TEST."),
    ] = None,
    limit: Limit = None,
    fit: Annotated[
        Optional[Literal["crop", "resize", "pad", "reject"]],  # noqa: UP045
        typer.Option(help="What becomes of pictures that are not square."),
    ] = None,
    crop: Annotated[
        Optional[Literal["none", "face"]],  # noqa: UP045
        typer.Option(help="face: find the largest face and align it."),
    ] = None,
    store: Annotated[
        Optional[Literal["hq", "reference", "virtual"]],  # noqa: UP045
        typer.Option(help="What rows hold: both pictures; LQ and a reference to the source; or the key alone."),
    ] = None,
    hq_format: Annotated[Optional[str], typer.Option(help="png, webp (lossless), or jpeg:QUALITY.")] = None,  # noqa: UP045
    lq_format: Annotated[Optional[str], typer.Option(help="The same, for LQ.")] = None,  # noqa: UP045
    target: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Twins of the pictures to aim at, by the same names (FFHQR)."),
    ] = None,
    licence: Licence = None,
    shard_rows: Annotated[Optional[int], typer.Option(help="Rows of a shard.")] = None,  # noqa: UP045
    max_rejects: MaxRejects = None,
    workers: Workers = None,
    config: options.Config = "tiny",
    set: options.Set = [],  # noqa: B006
    address: options.Address = None,
    dry_run: DryRun = False,
    track: Track = True,
) -> dict:
    """Turn pictures into dual-stage degraded (LQ, HQ) pairs in Parquet shards, on Ray Data."""
    from pipelines.synthesize.build import synthesize
    from pipelines.synthesize.config import SynthConfig

    settings = load(
        SynthConfig, configs.find(config or "tiny", "synth"), set, sources=_places(sources, licence, target), out=out,
        recipe=recipe, variants=variants, seed=seed, size=size, split=_shares(split), limit=limit, fit=fit, crop=crop,
        store=store, hq_format=hq_format, lq_format=lq_format, shard_rows=shard_rows, max_rejects=max_rejects,
        workers=workers,
    )  # fmt: skip
    with console.progress("pictures") as progress:
        if dry_run:
            from pipelines.synthesize.estimate import estimate

            return _shown(estimate(settings, progress, address)._asdict())
        return _made(out, lambda: synthesize(settings, progress, address), track)


console.command(app, "synth", "osdface data synth faces --out pairs --recipe dual_sequential --size 64")(synth)


def _places(sources: list[str] | None, licence: str | None, target: str | None) -> list[dict[str, Any]] | None:
    if not sources:
        return None  # then the configuration says which
    return [{"uri": uri, "licence": licence or "", "target": target} for uri in sources]


def _shares(split: str | None) -> dict[str, float] | None:
    if split is None:
        return None
    try:
        val, test = (float(share) for share in split.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{split}' is not VAL,TEST, for example 0.05,0.1", param_hint="--split") from None
    return {"val": val, "test": test}


def _made(out: str, make: Any, track: bool) -> dict:
    """Run what makes or changes a dataset; log it where it did."""
    from pipelines.pairs.manifest import read_manifest

    before = None
    with contextlib.suppress(UserError):  # nothing finished there yet
        before = read_manifest(out)
    start = time.perf_counter()
    manifest = make()
    seconds = time.perf_counter() - start
    result = _summary(out, manifest)
    if track and manifest != before:
        from pipelines.synthesize.record import record

        rows = manifest.counts.rows - (before.counts.rows if before else 0)
        result["run_id"] = record(out, manifest, seconds, max(rows, 0))
    return _shown(result)


def verify(
    dataset: Dataset,
    replay: Annotated[int, typer.Option(min=0, help="Rows to degrade again from their traces.")] = 8,
) -> dict:
    """Check all digests; replay some rows from their own columns, pixel for pixel."""
    from pipelines.pairs.verify import verify as check

    with console.progress("shards") as progress:
        return _shown(check(dataset, replay, progress)._asdict())


console.command(app, "verify", "osdface data verify pairs --replay 16")(verify)


def preview(
    dataset: Dataset, out: options.Out, count: Annotated[int, typer.Option(min=1, help="Pairs shown.")] = 12
) -> dict:
    """Draw a contact sheet of LQ | HQ pairs, from mild to severe."""
    from pipelines import report

    report.pairs_preview(dataset, out, count)
    return _shown({"sheet": str(out)})


console.command(app, "preview", "osdface data preview pairs --out pairs.png")(preview)


def show(
    dataset: Dataset,
    key: Annotated[str, typer.Argument(help="The pair's key, which training says where a loss is not a number.")],
    out: options.Out,
) -> dict:
    """Draw the pair of one key."""
    from pipelines import report

    report.save_png(out, report.pair(dataset, key))
    return _shown({"pair": str(out)})


console.command(app, "show", "osdface data show pairs 3f2a90c1d4e7-000 --out pair.png")(show)


def info(dataset: Dataset) -> dict:
    """Show what a dataset is: digest, recipe, counts, rejects by reason."""
    from pipelines.pairs.manifest import read_manifest
    from pipelines.store import Store
    from pipelines.synthesize.record import reject_kinds

    manifest = read_manifest(dataset)
    kinds = reject_kinds(Store(dataset))
    more = {"parent": manifest.parent, "made_by": manifest.made_by, "licences": manifest.licences, "rejected": kinds}
    return _shown(_summary(dataset, manifest) | more)


console.command(app, "info", "osdface data info pairs")(info)


def regenerate(
    dataset: Dataset,
    out: Place,
    recipe: Annotated[Optional[str], typer.Option(help="Another recipe.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(help="Another seed.")] = None,  # noqa: UP045
    variants: Annotated[Optional[int], typer.Option(min=1, help="Another number of variants.")] = None,  # noqa: UP045
    workers: Workers = None,
    address: options.Address = None,
    track: Track = True,
) -> dict:
    """Make a dataset again from its manifest, to the same digest; or derive one with another recipe or seed."""
    from degradations.recipe import RecipeError
    from degradations.recipe import load as load_recipe
    from pipelines.synthesize.config import Work
    from pipelines.synthesize.derive import regenerate as again

    try:
        changes = {"recipe": load_recipe(recipe).model_dump() if recipe else None, "seed": seed, "variants": variants}
    except RecipeError as error:
        raise UserError(str(error)) from None
    given = {name: value for name, value in changes.items() if value is not None}
    work = parse(Work, {} if workers is None else {"workers": workers}, "--workers")
    with console.progress("pictures") as progress:
        return _made(out, lambda: again(dataset, out, given, work, progress, address), track)


console.command(app, "regenerate", "osdface data regenerate pairs --out pairs2 --recipe gfpgan")(regenerate)


def extend(
    dataset: Dataset,
    sources: Annotated[list[str], typer.Argument(help="Places of more pictures.")],
    target: Annotated[Optional[str], typer.Option(help="Twins of the pictures to aim at.")] = None,  # noqa: UP045
    licence: Licence = None,
    limit: Limit = None,
    max_rejects: MaxRejects = None,
    workers: Workers = None,
    address: options.Address = None,
    track: Track = True,
) -> dict:
    """Add the pictures of more sources, in shards of their own; old shards stay as they are."""
    from pipelines.sources import Source
    from pipelines.synthesize.config import Work
    from pipelines.synthesize.derive import extend as add

    places = [parse(Source, place, "SOURCES") for place in _places(sources, licence, target) or []]
    given = {"workers": workers, "max_rejects": max_rejects}
    work = parse(Work, {name: value for name, value in given.items() if value is not None}, "options")
    with console.progress("pictures") as progress:
        return _made(dataset, lambda: add(dataset, places, work, limit, progress, address), track)


console.command(app, "extend", "osdface data extend pairs more_faces --licence CC-BY-4.0")(extend)


def remove(
    dataset: Dataset,
    source_sha256: Annotated[list[str], typer.Option(help="Hash of a source picture, from its rows. Repeatable.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")] = False,
    track: Track = True,
) -> dict:
    """Take pictures out of a dataset, rows and bytes; only their hashes stay, so that no later run brings them back."""
    from pipelines.synthesize.derive import remove as take_out
    from pipelines.synthesize.derive import would_remove

    if dry_run:
        return _shown(would_remove(dataset, source_sha256))
    return _made(dataset, lambda: take_out(dataset, source_sha256), track)


console.command(app, "remove", "osdface data remove pairs --source-sha256 2c26b46b68ff...")(remove)


def diff(first: Dataset, second: Annotated[str, typer.Argument(help="The dataset that it is compared with.")]) -> dict:
    """Show what differs between two datasets, in their specs and row by row."""
    from pipelines.pairs.diff import diff as compare

    return _shown(compare(first, second))


console.command(app, "diff", "osdface data diff pairs pairs2")(diff)


def card(
    dataset: Dataset,
    out: Annotated[Optional[Path], typer.Option(help="A file; else it is printed.")] = None,  # noqa: UP045
) -> dict:
    """Write the dataset's card, with its sources' licences, in Hugging Face's form."""
    from pipelines.pairs.card import card as text
    from pipelines.pairs.manifest import read_manifest

    written = text(read_manifest(dataset))
    if out is None:
        console.out.print(written, markup=False, soft_wrap=True)
        return {"card": written}
    write(out, written)
    return _shown({"card": str(out)})


console.command(app, "card", "osdface data card pairs --out README.md")(card)


def _summary(place: str, manifest: "Manifest") -> dict[str, Any]:
    return {
        "out": place,
        "digest": manifest.digest,
        "recipe": manifest.spec.recipe.name,
        "shards": len(manifest.shards),
    } | manifest.counts.model_dump(mode="json")


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    console.table(result)
    return result
