"""osdface serve: the endpoint."""

from typing import Annotated

import typer

from jobs import console, options

app = typer.Typer(help="Host a restorer on Ray Serve.")


def up(
    model: options.Model = "models:/osdface@champion",
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless told otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it answers; `serve down` ends it.")] = False,
) -> dict:
    """Serve a model over HTTP until interrupted."""
    from pipelines.serve import control

    result = control.up(model, host, port, detach)
    console.table(result)
    return result


console.command(app, "up", "osdface serve up --model models:/osdface@champion --port 8000")(up)


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
