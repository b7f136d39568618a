"""osdface restore: faces of photographs, by a local model, by a cluster or by an endpoint."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs import console, options
from osdface.errors import UsageError, UserError
from osdface.modes import ColourFix, Dtype, Execution, FaceMode, Wishes

ARCHIVES = (".zip", ".tar")


def restore(
    picture: Annotated[Path, typer.Argument(help="A photograph, an aligned face, or a folder or zip of them.")],
    out: Annotated[Path, typer.Option(help="A file (.png, .jpg, .webp, .tiff), or a folder, for the result.")],
    model: Annotated[str | None, typer.Option(help="A model reference: restore here.")] = None,
    url: Annotated[str | None, typer.Option(help="An endpoint, http://HOST:PORT: restore there.")] = None,
    faces: Annotated[
        FaceMode, typer.Option(help="Every face of a photograph, the whole picture, or the one aligned face it is.")
    ] = "auto",
    face: Annotated[
        list[int], typer.Option(help="Only this face, counted from the left, from 1. Repeatable.", min=1)
    ] = [],  # noqa: B006
    min_face: Annotated[int, typer.Option(help="Leave faces fewer pixels across as they are.", min=0)] = 32,
    largest: Annotated[bool, typer.Option("--largest", help="Only the largest face of each picture.")] = False,
    no_face: Annotated[
        Literal["copy", "skip"], typer.Option(help="What to do with a picture without a face to restore.")
    ] = "copy",
    upscale: Annotated[int, typer.Option(help="Enlarge the photograph so many times.", min=1, max=8)] = 1,
    strength: Annotated[float, typer.Option(help="0 leaves faces as they are, 1 restores them.", min=0, max=1)] = 1.0,
    colour_fix: Annotated[ColourFix, typer.Option(help="Give restored faces the colours they had.")] = "none",
    latent: Annotated[Literal["mode", "sample"], typer.Option(help="The encoder's mean, or a draw (--seed).")] = "mode",
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    execution: Annotated[
        Execution,
        typer.Option(help="As published; faster on CPUs, rounded more coarsely; or that in half the memory."),
    ] = "plain",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the networks; less than float32 is for GPUs.")] = "float32",
    detector: Annotated[
        str, typer.Option(help="dlib, dlib-cnn, or insightface:PACK where you have its files.")
    ] = "dlib",
    compare: Annotated[
        Path | None,
        typer.Option(help="A .png: before | after. A folder: these, and a page with a slider."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail (exit code 1) if a picture cannot be restored.")
    ] = False,
    address: options.Address = None,
) -> dict:
    """Restore every face of a photograph and paste it back; or of all photographs of a folder or zip."""
    from pipelines import restore_folder, restoring

    console.existing(picture, "picture, folder or archive")
    if bool(url) == bool(model):
        raise UsageError("give either --model (restore here) or --url (restore at an endpoint)")
    wishes = Wishes(
        faces=faces, numbers=tuple(face), min_face=min_face, largest=largest, strength=strength,
        colour_fix=colour_fix, upscale=upscale, detector=detector,
    )  # fmt: skip
    for kept in (picture, out):
        if compare and _same(compare, kept):
            raise UserError(f"{compare}: would be written over by --compare; give it another name")
    if url:
        if _same(out, picture):
            raise UserError(f"{out}: is the picture itself, which would be lost; give another --out")
        if wishes != Wishes(faces=faces) or address:
            raise UsageError("--url takes --faces, --out and --compare alone: the rest is for a model here")
        return _at_endpoint(picture, out, url, faces, compare)
    order = restoring.order(
        model or "", wishes, no_face=no_face, latent=latent, seed=seed, execution=execution, dtype=dtype
    )
    many = picture.is_dir() or picture.suffix.lower() in ARCHIVES
    if compare and many and compare.suffix:
        raise UsageError(f"{compare}: of many pictures, --compare is a folder")
    run: restore_folder.Run = restore_folder.here
    if address:
        from pipelines import restore_cluster

        run = restore_cluster.on(address)
    if many:
        with console.progress("pictures") as progress:
            result = restore_folder.folder(picture, out, order, run, progress)
    else:
        row = restore_folder.one(picture, out, order, run)
        result = {"out": row["output"], "pictures": [row]}
    result["compare"] = str(restoring.compare(picture, result["pictures"], compare)) if compare else None
    _tell(result, many)
    if strict and result.get("failed"):
        raise UserError(f"{result['failed']} of {len(result['pictures'])} pictures failed; {out}/report.csv says why")
    return result


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file or folder, or will be."""
    return one.samefile(other) if one.exists() and other.exists() else one.resolve() == other.resolve()


def _at_endpoint(picture: Path, out: Path, url: str, faces: FaceMode, compare: Path | None) -> dict[str, Any]:
    from pipelines import restoring

    for path in filter(None, (out, compare)):
        if path.suffix.lower() != ".png":
            raise UsageError(
                f"{path}: an endpoint's pictures are written as PNG; name it {path.with_suffix('.png').name}"
            )
    restored = restoring.at_endpoint(picture, url, faces)
    restoring.write(picture, restored, out, compare)
    result = {"out": str(out), "compare": str(compare) if compare else None, **restored.facts}
    console.table(result)
    return result


def _tell(result: dict[str, Any], many: bool) -> None:
    """What was made: of one picture its faces, of many their number."""
    if many:
        console.table({name: value for name, value in result.items() if name not in ("pictures", "order", "digest")})
        return
    (row,) = result["pictures"]
    reason = f" ({row['reason']})" if row["reason"] else ""
    console.say(f"{row['status']}  {row['output'] or row['input']}{reason}")
    for face in row["faces"]:
        what = "restored" if face["restored"] else f"left: {face['reason']}"
        console.say(f"face {face['number']}  box {face['box']}  score {face['score']}  {what}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    console.command(app, "restore", "osdface restore party.jpg --out restored.png --model champion")(restore)
