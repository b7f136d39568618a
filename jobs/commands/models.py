"""osdface models: versions in the MLflow registry, and bundles from and to other programs' files."""

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from jobs import console, options
from jobs import gates as gate_files
from osdface.config import load
from osdface.errors import UsageError
from osdface.export import Format
from osdface.presets import VREInput

UNITS = {"s": 1, "m": 60, "h": 3600}

app = typer.Typer(help="Model versions: register, promote, trace; import and export.")
Version = Annotated[str, typer.Argument(help="A version's number, an alias, or models:/NAME/VERSION.")]
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

    measured: dict = {}
    if metrics:
        from pipelines.promotion import evaluations

        measured = evaluations.read(metrics, bundle)._asdict()
    version = registry.register(bundle, name, measured.get("figures"), measured.get("dataset"))
    result = version._asdict()
    console.table(result)
    return result


console.command(app, "register", "osdface models register model --metrics evaluation/metrics.json")(register)


def list_(name: Name = "osdface") -> dict:
    """List the versions of a model."""
    from pipelines import registry

    found = registry.versions(name)
    table = Table("version", "aliases", "preset", "dataset", "measured", "registered", "last promotion", title=name)
    for one in found:
        figures = ", ".join(f"{key} {value:.4g}" for key, value in list(one.metrics.items())[:3])
        last = " ".join(filter(None, (one.promotion.get("outcome"), one.promotion.get("at"))))
        table.add_row(
            one.version, ", ".join(one.aliases), one.preset, (one.dataset_digest or "")[:12], figures,
            f"{one.registered_at} {one.registered_by or ''}", last,
        )  # fmt: skip
    console.show(table)
    return {"versions": [one._asdict() for one in found]}


console.command(app, "list", "osdface models list")(list_)


def show(version: Version, name: Name = "osdface") -> dict:
    """Show all that is known of a version, with its evaluations."""
    from pipelines.promotion import evaluations

    found = _find(version, name)
    result = found._asdict() | {"evaluations": [one._asdict() for one in evaluations.of(found)]}
    console.table({key: value for key, value in result.items() if key != "evaluations"})
    for one in result["evaluations"]:
        console.say(f"on dataset {one['dataset']}")
        console.table({f"  {key}": f"{value:.5g}" for key, value in one["figures"].items()})
    return result


console.command(app, "show", "osdface models show champion")(show)


def compare(one: Version, other: Version, name: Name = "osdface") -> dict:
    """Put two versions side by side: figures on a dataset that both were evaluated on, and what they were made of."""
    from pipelines.promotion import comparing

    result = comparing.compare(_find(one, name), _find(other, name))
    table = Table(
        "", result["one"], result["other"], "better", title=f"on dataset {result['dataset'] or 'none in common'}"
    )
    for key, row in result["metrics"].items():
        table.add_row(key, f"{row['one']:.5g}", f"{row['other']:.5g}", row["better"])
    for key, row in result["differs"].items():
        table.add_row(key, str(row["one"]), str(row["other"]), "")
    console.show(table)
    return result


console.command(app, "compare", "osdface models compare 3 champion")(compare)


def lineage(
    ref: Annotated[Optional[str], typer.Argument(help="A version, a model reference, or an X-Run-Id.")] = None,  # noqa: UP045
    response_headers: Annotated[
        Path | None, typer.Option(help="What an endpoint answered, saved by `curl -D FILE`; - is standard input.")
    ] = None,
    name: Name = "osdface",
) -> dict:
    """Walk back from a version, or a served picture, to the training runs, the dataset, its recipe and its sources."""
    from pipelines import registry

    if bool(ref) == bool(response_headers):
        raise UsageError("give either a version (or a run), or --response-headers FILE")
    if response_headers:
        text = (
            sys.stdin.read() if str(response_headers) == "-" else console.existing(response_headers, "file").read_text()
        )
        tree = registry.lineage_of_answer(text, name)
    else:
        assert ref
        tree = registry.lineage(_find(ref, name).ref if ref.isdigit() else ref)
    console.show(_branch(Tree(str(tree.get("version", "run"))), tree))
    return tree


console.command(app, "lineage", "osdface models lineage champion")(lineage)


def _branch(tree: Tree, node: dict) -> Tree:
    for key, value in node.items():
        if isinstance(value, dict):
            _branch(tree.add(escape(key)), value)
        else:
            tree.add(escape(f"{key}  {', '.join(map(str, value)) if isinstance(value, list) else value}"))
    return tree


def history(name: Name = "osdface") -> dict:
    """List every promotion and rollback that was tried, newest first, and what came of it."""
    from pipelines.promotion import history as kept

    attempts = kept.attempts(name)
    table = Table("at", "action", "version", "in place of", "by", "outcome", "why", title=name)
    for one in attempts:
        why = "; ".join(filter(None, (one["why"], one["reason"])))
        table.add_row(
            *map(escape, (one["at"], one["action"], one["version"], one["former"], one["by"], one["outcome"], why))
        )
    console.show(table)
    return {"attempts": attempts}


console.command(app, "history", "osdface models history")(history)


def promote(
    version: Version,
    name: Name = "osdface",
    gates: Annotated[
        str, typer.Option(help="What it must hold: a YAML file, or sound, default or release.")
    ] = "default",
    set: options.Set = [],  # noqa: B006
    canary: Annotated[str, typer.Option(help="A share of the traffic that it gets first, such as 10%.")] = "",
    shadow: Annotated[
        bool,
        typer.Option(
            "--shadow", help="Give it copies of requests (all, or --canary's share); nobody sees its answers."
        ),
    ] = False,
    for_: Annotated[str, typer.Option("--for", help="How long live requests are watched: 90s, 5m, 1h. [1m]")] = "",
    force: Annotated[bool, typer.Option("--force", help="Promote although gates fail; goes with --why.")] = False,
    why: Annotated[str, typer.Option(help="The reason, kept in the history.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the gates find; exit code 1 if one fails.")
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="The one endpoint to promote at; all that run here if absent.")
    ] = None,
) -> dict:
    """Make a version the champion, if it passes the gates; where endpoints run, they go over to it without a gap."""
    from pipelines.promotion import checks as checking
    from pipelines.promotion import promoting
    from pipelines.promotion.gates import Gates

    wanted = load(Gates, gate_files.find(gates), set)
    number = _find(version, name).version
    if dry_run:
        found = promoting.examine(number, wanted, name, _tell)
        _show_checks(found)
        if bad := checking.failed(found):
            raise checking.Refused(f"version {number} would be refused: " + "; ".join(c.sentence() for c in bad), found)
        return {"version": number, "outcome": "would be promoted", "checks": [check._asdict() for check in found]}
    if for_ and not (canary or shadow):
        raise UsageError("--for goes with --canary or --shadow")
    share = _share(canary) if canary else float(shadow)
    seconds = _seconds(for_ or "1m") if share else 0.0
    wishes = promoting.Wishes(wanted, share, seconds, shadow, force, why, url)
    try:
        result = promoting.promote(number, wishes, name, _tell)
    except checking.Refused as refused:
        _show_checks(refused.checks)
        raise
    _show_checks([checking.Check(**check) for check in result["checks"]])
    _say_done(result, name)
    return result


console.command(app, "promote", "osdface models promote 3 --canary 10% --for 5m")(promote)


def rollback(
    name: Name = "osdface",
    why: Annotated[str, typer.Option(help="The reason, kept in the history.")] = "",
    url: Annotated[str | None, typer.Option(help="The one endpoint to roll back; all that run here if absent.")] = None,
) -> dict:
    """Make the champion's predecessor the champion again, in the registry and at the endpoints that run."""
    from pipelines.promotion import promoting

    result = promoting.rollback(promoting.Wishes(why=why, url=url), name, _tell)
    _say_done(result, name)
    return result


console.command(app, "rollback", "osdface models rollback --why 'glasses vanish'")(rollback)


def _find(ref: str, name: str) -> Any:
    """The registered version that a number, an alias or models:/... names."""
    from pipelines import registry

    if ref in registry.ALIASES:
        ref = f"models:/{name}@{ref}"
    found = registry.find(ref) or registry.version(ref, name)
    if found.name != name:
        raise UsageError(f"{ref}: is a version of '{found.name}', not of '{name}'; give --name")
    return found


def _share(text: str) -> float:
    """10% or 0.1."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1
    if not 0 < share <= 1:
        raise UsageError(f"--canary {text}: give a share of the traffic, such as 10%")
    return share


def _seconds(text: str) -> float:
    """90s, 5m, 1h, or plain seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = -1
    if not 0 < seconds < 7 * 86400:
        raise UsageError(f"--for {text}: give a time such as 90s, 5m or 1h")
    return seconds


def _show_checks(checks: list) -> None:
    table = Table("", "gate", "found", "wanted", "note")
    for check in checks:
        mark = "[green]ok[/]" if check.passed else "[bold red]no[/]"
        table.add_row(mark, *map(escape, (check.gate, check.found, check.wanted, check.note)))
    console.show(table)


def _tell(text: str) -> None:
    """Not as markup: an IPv6 address is in brackets."""
    console.say(escape(text))


def _say_done(result: dict, name: str) -> None:
    console.say(f"version {result['version']} of {name}: {result['outcome']}")
    for url in result.get("endpoints", []):
        _tell(f"{url} serves it")
    if result.get("endpoints") == []:
        console.say("no endpoint runs here: only the alias has moved, and the next `osdface serve up` serves it")


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
        typer.Option(
            help="diffusers: base and LoRA; official: the published files; safetensors: merged weights; half: a bundle "
            "in float16."
        ),
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
