"""osdface restore: faces of a photograph, by a local model or by an endpoint."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from jobs import console, options
from osdface.errors import UsageError
from osdface.modes import FaceMode


def restore(
    picture: Annotated[Path, typer.Argument(help="A photograph, or an aligned face.")],
    out: options.Out,
    model: Annotated[Optional[str], typer.Option(help="A model reference: restore here.")] = None,  # noqa: UP045
    url: Annotated[Optional[str], typer.Option(help="An endpoint, http://HOST:PORT: restore there.")] = None,  # noqa: UP045
    faces: Annotated[
        FaceMode, typer.Option(help="Every face of a photograph, the whole picture, or the one aligned face it is.")
    ] = "auto",
    compare: Annotated[Optional[Path], typer.Option(help="Also write a before | after picture here.")] = None,  # noqa: UP045
) -> dict:
    """Restore every face of a photograph and paste it back."""
    from pipelines import restoring

    console.existing(picture, "picture")
    for path in filter(None, (out, compare)):
        if path.suffix.lower() != ".png":
            raise UsageError(f"{path}: pictures are written as PNG; name it {path.with_suffix('.png').name}")
    if url and not model:
        restored = restoring.at_endpoint(picture, url, faces)
    elif model and not url:
        restored = restoring.here(picture, model, faces)
    else:
        raise UsageError("give either --model (restore here) or --url (restore at an endpoint)")
    restoring.write(picture, restored, out, compare)
    result = {"out": str(out), "compare": str(compare) if compare else None, **restored.facts}
    console.table(result)
    return result


def register(app: typer.Typer) -> None:
    console.command(app, "restore", "osdface restore party.jpg --out restored.png --model champion")(restore)
