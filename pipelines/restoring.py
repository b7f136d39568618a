"""One picture file restored, by a local model or by an endpoint."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

from osdface.errors import UserError
from osdface.imagefile import read_image
from osdface.restorer import Restorer
from pipelines import report

TIMEOUT = 120  # seconds for one picture at an endpoint


class RestoredPicture(NamedTuple):
    """image: uint8 RGB; facts: what is told about it (faces, model version, ...)."""

    image: np.ndarray
    facts: dict[str, Any]


def here(picture: Path, model: str, faces: str) -> RestoredPicture:
    """Restore with a model loaded in this process."""
    result = Restorer.load(model)([read_image(picture.read_bytes(), str(picture))], faces)[0]
    found = [{"box": face.box, "score": round(face.score, 3)} for face in result.faces]
    return RestoredPicture(result.image, {"faces": len(found), "boxes": found})


def at_endpoint(picture: Path, url: str, faces: str) -> RestoredPicture:
    """Restore at an endpoint. Raises UserError with the endpoint's own words if it refuses the picture."""
    try:
        answer = httpx.post(
            f"{url.rstrip('/')}/v1/restore", params={"faces": faces}, content=picture.read_bytes(), timeout=TIMEOUT
        )
    except httpx.HTTPError as error:
        raise UserError(
            f"{url}: no answer from an endpoint there ({error}); start one with `osdface serve up`"
        ) from None
    if answer.status_code != 200:
        raise UserError(f"{url}: refused {picture}: {answer.json().get('detail', answer.status_code)}")
    names = {
        "x-model-version": "version",
        "x-run-id": "run_id",
        "x-dataset-digest": "dataset_digest",
        "x-faces": "faces",
    }
    facts = {ours: answer.headers[theirs] for theirs, ours in names.items() if theirs in answer.headers}
    return RestoredPicture(np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")), facts)


def write(picture: Path, restored: RestoredPicture, out: Path, compare: Path | None) -> None:
    """Write the restored picture, and a before | after one."""
    report.save_png(out, restored.image)
    if compare:
        before = read_image(picture.read_bytes(), str(picture))
        report.save_png(compare, report.side_by_side(before, restored.image, ("before", "after")))
