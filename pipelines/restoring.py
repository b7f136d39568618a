"""What `osdface restore` does beside restoring: the order, an endpoint's answer, before and after."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from osdface import bundle, detectors
from osdface.errors import UsageError, UserError
from osdface.imagefile import ImageError, read_image
from osdface.modes import FaceMode, Wishes
from pipelines import comparing, report, sources
from pipelines.photographs import LARGEST, Order, Row

TIMEOUT = 120  # seconds for one picture at an endpoint


class RestoredPicture(NamedTuple):
    """image: uint8 RGB; facts: what is told about it (faces, model version, ...)."""

    image: np.ndarray
    facts: dict[str, Any]


def at_endpoint(picture: Path, url: str, faces: FaceMode) -> RestoredPicture:
    """Restore at an endpoint. Raises UserError with the endpoint's own words if it refuses the picture."""
    import httpx  # which only `osdface[serve]` brings

    data = _bytes(picture)
    try:
        answer = httpx.post(f"{url.rstrip('/')}/v1/restore", params={"faces": faces}, content=data, timeout=TIMEOUT)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(
            f"{url}: no answer from an endpoint there ({error}); start one with `osdface serve up`"
        ) from None
    if answer.headers.get("content-type") == "application/problem+json":
        raise UserError(f"{url}: refused {picture}: {answer.json()['detail']}")
    names = {
        "x-model-version": "version",
        "x-run-id": "run_id",
        "x-dataset-digest": "dataset_digest",
        "x-faces": "faces",
    }
    facts = {ours: answer.headers[theirs] for theirs, ours in names.items() if theirs in answer.headers}
    try:
        return RestoredPicture(read_image(answer.content), facts)
    except ImageError:
        raise UserError(
            f"{url}: something else answers there (status {answer.status_code}, no picture); give an endpoint's URL, "
            "as `osdface serve status` shows it"
        ) from None


def _bytes(picture: Path) -> bytes:
    try:
        return picture.read_bytes()
    except OSError as error:
        raise UserError(f"{picture}: cannot be read ({error.strerror}); give a picture file") from None


def write(picture: Path, restored: RestoredPicture, out: Path, compare: Path | None) -> None:
    """Write an endpoint's picture, and a before | after one."""
    report.save_png(out, restored.image)
    if compare:
        report.save_png(compare, report.side_by_side(*comparing.read_both(_bytes(picture), out), comparing.TITLES))


def order(model: str, wishes: Wishes, **more: Any) -> Order:
    """What is made of every picture, by a model reference.

    Raises UserError where there is no such model, UsageError for wishes that don't go together or an unknown detector.
    """
    if wishes.faces == "whole" and (wishes.upscale > 1 or wishes.numbers or wishes.largest):
        raise UsageError("--faces whole is one pass over the picture: it takes no --upscale, --face or --largest")
    detectors.detector(wishes.detector)
    return Order(model=bundle.resolve(model).absolute(), wishes=wishes, **more)


def compare(source: Path, rows: list[Row], to: Path) -> Path:
    """Write before and after of the pictures that rows tell of, to a .png or a folder with a page. Returns its path."""
    written = [row for row in rows if row["output"]]
    if any(to.exists() and to.samefile(row["output"]) for row in written):
        raise UserError(f"{to}: is the restored picture, which --compare would write over; give it another name")
    if to.suffix.lower() == ".png":
        for row in written:  # one, or none
            both = comparing.read_both(_bytes(source), Path(row["output"]))
            report.save_png(to, report.side_by_side(*both, comparing.TITLES))
        return to
    if source.is_file() and len(rows) == 1 and rows[0]["input"] == str(source):
        return comparing.write([(source.name, _bytes(source), Path(row["output"])) for row in written], to)
    return comparing.write(_pictures(source, written), to)


def _pictures(source: Path, rows: list[Row]) -> Iterator[tuple[str, bytes, Path]]:
    """Those of a folder or archive that were restored, each read when its turn comes."""
    places = {file["source_uri"]: file["at"] for file in sources.files(sources.Source(uri=str(source)), 0)}
    for row in rows:
        if row["status"] == "restored":
            yield row["input"], sources.read(places[row["input"]], LARGEST), Path(row["output"])
