"""The format of an answer: what the query says, else what the header `Accept` prefers."""

from typing import get_args

from pipelines.serve.problems import Problem
from pipelines.serve.replica import Format

FORMATS: tuple[Format, ...] = get_args(Format)


def chosen(format: Format | None, accept: str) -> Format:
    """Raises Problem (406) for a header that accepts none of the formats."""
    if format or not accept.strip():
        return format or FORMATS[0]
    wanted = [_weighed(part) for part in accept.split(",")]
    weights = {known: _weight(known, wanted) for known in FORMATS}
    best = max(FORMATS, key=lambda known: weights[known])  # the first of equals
    if not weights[best]:
        raise Problem(
            406, f"answers are {', '.join(f'image/{known}' for known in FORMATS)}, none of which `Accept` takes"
        )
    return best


def _weighed(part: str) -> tuple[str, float]:
    """A media range and its weight; 0 for a weight that cannot be read."""
    kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    try:
        return kind, min(1.0, max(0.0, float(weight)))
    except ValueError:
        return kind, 0.0


def _weight(format: Format, wanted: list[tuple[str, float]]) -> float:
    """By the most particular range that has the format."""
    for range in (f"image/{format}", "image/*", "*/*"):
        if weights := [weight for kind, weight in wanted if kind == range]:
            return max(weights)
    return 0.0
