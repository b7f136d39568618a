"""What the OpenAPI document says of bodies and answers that are no JSON: pictures, and problems."""

from typing import Any

from pipelines.serve.problems import MEDIA

FORM = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": {"type": "string", "format": "binary", "description": "The picture (or `file`)."}},
}
FORMS = FORM | {"properties": {"image": {"type": "array", "items": FORM["properties"]["image"]}}}  # type: ignore[index]
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
RAW = dict.fromkeys(("image/png", "image/jpeg", "image/webp", "application/octet-stream"), BINARY)
EXAMPLE = {"type": "about:blank", "title": "Unsupported Media Type", "status": 415, "detail": "the picture: is not one"}
PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
        "detail": {"type": "string", "description": "One sentence."},
    },
}  # fmt: skip
TOLD = {
    "X-Model-Version": ("string", "Version of the registry that answered, or a bundle's digest.", "7"),
    "X-Run-Id": ("string", "MLflow run that trained it: `osdface models lineage RUN_ID`.", "0a1b2c"),
    "X-Dataset-Digest": ("string", "Digest of the pairs it was trained on.", "5e884898"),
    "X-Faces": ("integer", "Faces restored.", 2),
    "X-Face-Boxes": ("string", "JSON: [left, top, right, bottom] of each in the upright picture.", "[[9, 9, 99, 99]]"),
    "X-Identity": ("string", "JSON: how much each is still that person's, 0 to 1, or null.", "[0.97]"),
}  # fmt: skip
MEANS = {
    400: "Empty, or a form that cannot be read", 401: "No key, or a wrong one", 404: "There is none",
    406: "No format that `Accept` takes", 408: "The body took too long", 409: "It is not done yet",
    413: "Too many bytes or pixels", 415: "No picture, or an animated one", 422: "Damaged, or a bad parameter",
    429: "The key asks too often, or too many jobs are kept", 503: "All replicas are busy",
    504: "The picture took too long",
}  # fmt: skip
PICTURE_FAULTS = (400, 401, 406, 408, 413, 415, 422, 429, 503, 504)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may answer with these."""
    content = {MEDIA: {"schema": PROBLEM, "example": EXAMPLE}}
    return {status: {"description": MEANS[status], "content": content} for status in statuses}


def picture(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers with a picture, or with these."""
    headers = {
        name: {"schema": {"type": kind}, "description": told, "example": example}
        for name, (kind, told, example) in TOLD.items()
    }
    content = {f"image/{format}": BINARY for format in ("png", "jpeg", "webp")}
    return {200: {"description": "The restored picture", "content": content, "headers": headers}, **problems(*statuses)}


def body(form: dict[str, Any], raw: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route that takes pictures."""
    content = {**(RAW if raw else {}), "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}
