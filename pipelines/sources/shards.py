"""One file, a folder of them, or a pattern: what a data set in shards is named by."""

import re
from collections.abc import Iterator

from osdface.errors import UserError
from pipelines.sources.places import Place, locate, missing

MAGIC = re.compile(r"[*?\[{]")


def shards(uri: str, suffix: str) -> Iterator[tuple[str, Place, str]]:
    """The shards' names (relative to what they share; "" for a single file), places, and reasons why not.

    A folder's files that do not end on `suffix` come with a reason. Raises UserError for what is missing.
    """
    place = locate(uri)
    kind = place.kind()
    if kind == "folder":
        for name, found, reason in place.tree():
            yield name, found, reason or ("" if name.endswith(suffix) else f"is no shard ({suffix})")
    elif kind == "file":
        yield "", place, ""
    elif not is_pattern(uri):
        raise missing(uri)
    else:
        for found in _matching(uri):
            if found.kind() != "file":
                raise UserError(f"{found.url}: no such shard; fetch it or mend the pattern {uri}")
            yield found.path.removeprefix(_stem(uri)).lstrip("/"), found, ""


def is_pattern(uri: str) -> bool:
    """Whether it has braces or wildcards and names no file itself."""
    return bool(MAGIC.search(uri)) and not locate(uri).kind()


def _stem(uri: str) -> str:
    """The path of the folder that holds everything the pattern matches."""
    path = locate(uri).path
    return path[: MAGIC.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]


def _matching(uri: str) -> list[Place]:
    found = [place for name in _expanded(uri) for place in _places(name)]
    if not found:
        raise missing(uri)
    return found


def _places(name: str) -> list[Place]:
    return locate(name).matching() if re.search(r"[*?\[]", name) else [locate(name)]


def _expanded(text: str) -> Iterator[str]:
    """x{00..02}y and x{a,b}y written out, as a shell does."""
    braces = re.search(r"\{([^{}]*)\}", text)
    if not braces:
        yield text
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    width = len(numbers[1]) if numbers else 0
    choices = (
        (f"{i:0{width}d}" for i in range(int(numbers[1]), int(numbers[2]) + 1)) if numbers else braces[1].split(",")
    )
    for choice in choices:
        yield from _expanded(text[: braces.start()] + choice + text[braces.end() :])
