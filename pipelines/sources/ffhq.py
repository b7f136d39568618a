"""FFHQ as its authors lay it out: ffhq-dataset-v2.json beside images1024x1024/ or in-the-wild-images/."""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from osdface.errors import UserError
from pipelines.sources.places import Entry, Place, locator

DESCRIPTION = "ffhq-dataset-v2.json"
ALIGNED, WILD = "images1024x1024", "in-the-wild-images"
SPLITS = {"training": "train", "validation": "val"}


def entries(root: Place) -> Iterator[Entry]:
    """The aligned pictures with FFHQ's own split; where there are none, those in the wild, with their landmarks too."""
    folder = next((name for name in (ALIGNED, WILD) if root.child(name).kind() == "folder"), None)
    if folder is None:
        raise UserError(
            f"{root.url}: has neither {ALIGNED}/ nor {WILD}/; fetch one, or give its folder as kind 'folder'"
        )
    known = dict(_described(root.child(DESCRIPTION), folder == WILD))
    for name, place, reason in root.child(folder).tree():
        split, landmarks = known.get(number(name), ("", ""))
        at = "" if reason else locator("file", *place)
        yield Entry(f"{folder}/{name}", at, reason, split=split, landmarks=landmarks)


def number(name: str) -> str:
    """A picture's number, whatever its folder and format: what FFHQ and its twins have in common."""
    return PurePosixPath(name).stem.zfill(5)


def _described(place: Place, wild: bool) -> Iterator[tuple[str, tuple[str, str]]]:
    """Number, split and landmarks of every picture; one entry at a time, since all at once are four times the text."""
    try:
        text = place.read(place.size()).decode()
        decoder, end = json.JSONDecoder(), text.index("{") + 1
        while (start := text.find('"', end)) >= 0:
            key, end = decoder.raw_decode(text, start)
            value, end = decoder.raw_decode(text, text.index("{", end))
            landmarks = json.dumps(value["in_the_wild"]["face_landmarks"]) if wild else ""
            yield number(key), (SPLITS.get(value["category"], ""), landmarks)
    except FileNotFoundError:
        raise UserError(f"{place.url}: is missing; it comes with FFHQ") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{place.url}: is damaged ({error!r}); fetch it again") from None
