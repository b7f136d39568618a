"""WebDataset: plain tars whose members share a name up to the first dot with what belongs to the same sample."""

import itertools
import json
from collections.abc import Iterator

from osdface.imagefile import ImageError
from pipelines.sources import tars
from pipelines.sources.places import Entry, Place
from pipelines.sources.shards import shards

COMPANIONS = {"json", "txt", "text", "caption", "cls", "cls2", "id", "index", "inx", "url"}
BESIDE = (".idx", ".index", ".parquet", ".json")  # what tools lay beside the shards
LARGEST = 2**20  # bytes of a sample's json


def entries(uri: str) -> Iterator[Entry]:
    """Every picture of every shard, named SHARD/MEMBER; of a sample's other members, its json may give a group."""
    for name, place, reason in shards(uri, ".tar"):
        if reason:
            if not name.endswith(BESIDE):
                yield Entry(name, reason=reason)
            continue
        for _, sample in itertools.groupby(tars.entries(place), key=_sample):
            for entry in _pictures(place, list(sample)):
                yield entry._replace(name=f"{name}/{entry.name}".lstrip("/"))


def _sample(entry: Entry) -> str:
    folder, slash, name = entry.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _extension(entry: Entry) -> str:
    return entry.name[len(_sample(entry)) + 1 :].lower()


def _pictures(shard: Place, sample: list[Entry]) -> Iterator[Entry]:
    described = next((entry for entry in sample if _extension(entry) == "json" and entry.at), None)
    group, reason = _group(shard, described) if described else ("", "")
    for entry in sample:
        if _extension(entry) not in COMPANIONS:
            yield entry._replace(group=group, reason=entry.reason or reason, at="" if reason else entry.at)


def _group(shard: Place, described: Entry) -> tuple[str, str]:
    """The sample's group, and why its json cannot be understood."""
    try:
        *_, offset, size = json.loads(described.at)
        found = json.loads(tars.member(shard, offset, size, LARGEST))
        return str(found["group"]) if "group" in found else "", ""
    except (ValueError, TypeError, RecursionError, ImageError):
        return "", "the json of its sample cannot be read"
