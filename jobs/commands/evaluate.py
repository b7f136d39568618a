"""osdface evaluate: how well a model, or any method, restores."""

from typing import Annotated, Any, Literal

import typer

from jobs import console, options
from osdface.errors import UserError


def evaluate(
    out: options.Out,
    model: Annotated[str | None, typer.Option(help="The model that restores, as `osdface restore` takes it.")] = None,
    data: Annotated[str | None, typer.Option(help="A pair dataset for --model: a folder or URL.")] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None, typer.Option(help="Which of its pairs; `test` if absent.")
    ] = None,
    restored: Annotated[
        str | None, typer.Option(help="Pictures that any method restored: a folder, archive or URL.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="What --restored is compared with: pictures of the same names.")
    ] = None,
    no_reference: Annotated[
        str | None, typer.Option("--no-reference", help="Pictures that have no reference: metrics that need none.")
    ] = None,
    set: Annotated[
        str | None, typer.Option(help="A test set: celeba_test, lfw_test, webphoto_test, wider_test.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="The folder that --set lies in.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="A second model on the same pictures; `untrained`: the same one before its training."),
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Which, by commas; all that can be computed if absent.")] = None,
    require: Annotated[
        str | None, typer.Option(help="A metric in which --model must beat --against, or the command fails.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes over Ray, each with a model; 1 if absent, or what --address has."),
    ] = None,
    address: options.Address = None,
) -> dict:
    """Measure pictures with intervals: metrics.json, rows.parquet, report.html, sheets.

    Of a model on a pair dataset or a named test set, or pictures of any method.
    """
    from pipelines.evaluation import run
    from pipelines.evaluation.wanted import from_options

    wanted = from_options(
        metrics, model=model, data=data, split=split, restored=restored, reference=reference,
        no_reference=no_reference, set=set, root=root, against=against, require=require, workers=workers,
        address=address,
    )  # fmt: skip
    with console.progress("pictures") as progress:
        report = run.evaluate(wanted, out, progress)
    _show(report)
    if require:
        _require(report, require, f"see {out}/{run.REPORT_FILE}")
    console.say(f"{out}/{run.REPORT_FILE}")
    return report


def _show(report: dict[str, Any]) -> None:
    intervals = report["intervals"]
    width = max(map(len, intervals))
    for name, by in intervals.items():
        shown = "  ".join(f"{which} {_interval(one)}" for which, one in by.items())
        console.say(f"{name:<{width}}  {shown}{_counted(by, report['pairs'])}")
    needed: dict[str, list[str]] = {}
    for missing in report["missing"]:
        needed.setdefault(missing["name"], []).append(missing["file"])
    for name, files in needed.items():
        console.say(f"{name}: left out, needs {' and '.join(files)}")


def _interval(interval: dict[str, Any]) -> str:
    """In rich's markup, for which a bracket opens a style."""
    if interval["value"] is None:
        return "no value"
    ends = "" if interval["low"] is None else rf" \[{interval['low']:.3f}, {interval['high']:.3f}]"
    return f"{interval['value']:.3f}{ends}"


def _counted(by: dict[str, dict[str, Any]], pairs: int) -> str:
    """How many pictures enter the means, where that is not all."""
    least = min(interval["counted"] for interval in by.values())
    return f"  ({least} of {pairs} pictures count)" if least < pairs else ""


def _require(report: dict[str, Any], metric: str, see: str) -> None:
    ours, theirs = (report["metrics"][metric][which] for which in ("restored", "against"))
    sign = 1 if report["labels"][metric]["better"] == "higher" else -1
    if ours is None or theirs is None:
        raise UserError(f"{metric} has no value for these pictures, so --require cannot be told; {see}")
    if not sign * ours > sign * theirs:
        raise UserError(f"{metric} {ours:.3f} does not beat {theirs:.3f} of '{report['against']}'; {see}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    console.command(app, "evaluate", "osdface evaluate --model model --data pairs --out evaluation")(evaluate)
