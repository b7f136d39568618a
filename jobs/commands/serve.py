"""osdface serve: the endpoint."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from jobs import configs, console, options
from osdface.config import load

app = typer.Typer(help="Host a restorer on Ray Serve.")
CHAMPION = "models:/osdface@champion"
Host = Annotated[str, typer.Option(help="Address to listen on; loopback unless told otherwise.")]
Port = Annotated[int, typer.Option(help="Port to listen on.")]


def up(
    model: options.Model = CHAMPION,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    config: options.Config = None,
    set: options.Set = [],  # noqa: B006
    follow: Annotated[
        bool, typer.Option(help="Of an alias: serve what it comes to name, or only say so (`serve status`).")
    ] = True,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it answers; `serve down` ends it.")] = False,
) -> dict:
    """Serve a model over HTTP until interrupted."""
    from pipelines.serve import control

    settings = _settings(config, set)
    if detach:
        control.require_keys(host, settings)
        given = ["--model", model, "--follow" if follow else "--no-follow"]
        given += ["--config", config] if config else []
        result = control.detached(host, port, given + [word for one in set for word in ("--set", one)])
    else:
        result = control.up(model, host, port, settings, follow)
    console.table(result)
    return result


console.command(app, "up", "osdface serve up --model models:/osdface@champion --port 8000")(up)


def build(
    model: options.Model = CHAMPION,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    config: options.Config = None,
    set: options.Set = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("serve.yaml"),
) -> dict:
    """Write a Serve configuration file, for `serve deploy` and for KubeRay's `serveConfigV2`."""
    import yaml

    from osdface.files import write
    from pipelines.serve import application, control

    settings = _settings(config, set)
    control.require_keys(host, settings)
    loaded = application.describe(model)
    write(out, yaml.safe_dump(application.configuration(settings, loaded, host, port), sort_keys=False))
    result = {"out": str(out), **loaded.model.model_dump()}
    console.table(result)
    return result


console.command(app, "build", "osdface serve build --model models:/osdface/7 --out serve.yaml")(build)


def status() -> dict:
    """Show the endpoints that were started from this $OSDFACE_HOME."""
    from pipelines.serve import control

    endpoints = control.status()
    for endpoint in endpoints:
        console.table(endpoint)
    if not endpoints:
        console.say("no endpoint is running")
    return {"endpoints": endpoints}


console.command(app, "status", "osdface serve status")(status)


def down() -> dict:
    """End the endpoints that were started from this $OSDFACE_HOME."""
    from pipelines.serve import control

    ended = control.down()
    console.say(f"ended {len(ended)}")
    return {"ended": ended}


console.command(app, "down", "osdface serve down")(down)


def key(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    per_minute: Annotated[int, typer.Option(min=1, help="How many requests it allows.")] = 600,
) -> dict:
    """Make a key, and the lines that an endpoint's --config needs to know it. The key itself is kept nowhere."""
    from pipelines.serve import keys

    secret, known = keys.new(name, per_minute)
    console.say(f"the key, shown once: {secret}\n\nkeys:")
    console.say(escape(f"  - {{name: {known.name}, sha256: {known.sha256}, per_minute: {known.per_minute}}}"))
    return {"key": secret, "keys": [known.model_dump()]}


console.command(app, "key", "osdface serve key alice --per-minute 60")(key)


def _settings(config: str | None, overrides: list[str]):
    from pipelines.serve.settings import Settings

    return load(Settings, configs.find(config or configs.DEFAULT, "serve"), overrides)
