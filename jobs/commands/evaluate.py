"""osdface evaluate: how well a model restores."""

from typing import Annotated, Literal

import typer

from jobs import console, options
from osdface.errors import UsageError, UserError


def evaluate(
    model: options.Model,
    data: Annotated[str, typer.Option(help="The pair dataset: a folder or URL.")],
    out: options.Out,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which pairs.")] = "test",
    against: Annotated[
        str | None,
        typer.Option(help="A second model on the same pairs; `untrained`: the same one before its training."),
    ] = None,
    require: Annotated[
        Literal["psnr", "ssim"] | None, typer.Option(help="A metric that must beat --against, or the command fails.")
    ] = None,
) -> dict:
    """Restore a split, compare LQ and restored with HQ: metrics.json, rows.parquet, a sheet."""
    from pipelines import evaluate as pipeline

    if require and not against:
        raise UsageError("--require compares with another model: give --against too")
    with console.progress("pairs") as progress:
        report = pipeline.evaluate(model, data, out, split, against, progress)
    for name, values in report["metrics"].items():
        console.say(f"{name:<14}" + "  ".join(f"{which} {value:.3f}" for which, value in values.items()))
    if require:
        ours, theirs = (report["metrics"][require][which] for which in ("restored", "against"))
        if not ours > theirs:
            raise UserError(f"{require} {ours:.3f} does not beat {theirs:.3f} of '{against}'; see {out}/sheet.png")
    return report


def register(app: typer.Typer) -> None:
    """Add the command."""
    console.command(app, "evaluate", "osdface evaluate --model model --data pairs --out evaluation")(evaluate)
