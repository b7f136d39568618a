"""osdface faces: pictures for those who have none."""

from pathlib import Path
from typing import Annotated

import typer

from jobs import console

app = typer.Typer(help="Procedural faces, and the real photographs that come with installed packages.")


def make(
    out: Annotated[Path, typer.Argument(help="Folder for the pictures and metadata.jsonl.")],
    count: Annotated[int, typer.Option(help="How many pictures.")] = 64,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 512,
    seed: Annotated[int, typer.Option(help="The first picture's seed; the same seed gives the same bytes.")] = 0,
    per_identity: Annotated[int, typer.Option(help="Pictures of each identity.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> dict:
    """Draw procedural faces, their parameters kept beside them in metadata.jsonl."""
    from osdface import procedural

    with console.progress("pictures") as progress:
        procedural.make(out, count, size, seed, per_identity, workers=workers, progress=progress)
    result = {"out": str(out), "count": count, "size": size, "seed": seed, "generator": procedural.VERSION}
    console.table(result)
    return result


console.command(app, "make", "osdface faces make faces --count 256 --size 128 --seed 7")(make)


def photographs(out: Annotated[Path, typer.Argument(help="Folder for the pictures.")]) -> dict:
    """Copy the two real photographs of installed packages: insightface's t1 (six faces), scikit-image's astronaut."""
    from osdface import faces
    from pipelines import report

    written = {}
    for name, image in faces.photographs().items():
        report.save_png(out / f"{name}.png", image)
        written[name] = str(out / f"{name}.png")
    console.table(written)
    return written


console.command(app, "photographs", "osdface faces photographs photographs")(photographs)
