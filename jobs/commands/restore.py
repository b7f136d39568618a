"""osdface restore: faces of a photograph, by a local model or by an endpoint."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from jobs import console, options
from osdface.errors import UsageError


def restore(
    picture: Annotated[Path, typer.Argument(help="A photograph, or an aligned face.")],
    out: options.Out,
    model: Annotated[Optional[str], typer.Option(help="A model reference: restore here.")] = None,  # noqa: UP045
    url: Annotated[Optional[str], typer.Option(help="An endpoint, http://HOST:PORT: restore there.")] = None,  # noqa: UP045
    faces: Annotated[str, typer.Option(help="auto, whole or aligned.")] = "auto",
    compare: Annotated[Optional[Path], typer.Option(help="Also write a before | after picture here.")] = None,  # noqa: UP045
) -> dict:
    """Restore every face of a photograph and paste it back."""
    from pipelines import restoring

    console.existing(picture, "picture")
    if (model is None) == (url is None):
        raise UsageError("give either --model (restore here) or --url (restore at an endpoint)")
    restored = restoring.at_endpoint(picture, url, faces) if url else restoring.here(picture, model, faces)
    restoring.write(picture, restored, out, compare)
    result = {"out": str(out), "compare": str(compare) if compare else None, **restored.facts}
    console.table(result)
    return result


def register(app: typer.Typer) -> None:
    console.command(app, "restore", "osdface restore party.jpg --out restored.png --model champion")(restore)
