"""One picture file restored, by a local model or by an endpoint."""

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import httpx
import numpy as np

from osdface.errors import UserError
from osdface.imagefile import ImageError, read_image
from osdface.modes import FaceMode
from pipelines import report

TIMEOUT = 120  # seconds for one picture at an endpoint


class RestoredPicture(NamedTuple):
    """image: uint8 RGB; facts: what is told about it (faces, model version, ...)."""

    image: np.ndarray
    facts: dict[str, Any]


def here(picture: Path, model: str, faces: FaceMode) -> RestoredPicture:
    """Restore with a model loaded in this process. Raises UserError for what is no picture, or no model."""
    from osdface.restorer import Restorer  # with it comes diffusers, which an endpoint's client need not wait for

    image = read_image(_bytes(picture), str(picture))
    result = Restorer.load(model)(image, faces, output_type="array")
    found = [{"box": face.box, "score": round(face.score, 3)} for face in result.faces]
    return RestoredPicture(result.image, {"faces": len(found), "boxes": found})


def at_endpoint(picture: Path, url: str, faces: FaceMode) -> RestoredPicture:
    """Restore at an endpoint. Raises UserError with the endpoint's own words if it refuses the picture."""
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
    """Write the restored picture, and a before | after one."""
    report.save_png(out, restored.image)
    if compare:
        before = read_image(_bytes(picture), str(picture))
        if before.shape != restored.image.shape:  # a square picture taken whole comes back at the model's size
            before = cv2.resize(before, restored.image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        report.save_png(compare, report.side_by_side(before, restored.image, ("before", "after")))
