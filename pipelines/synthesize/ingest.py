"""Sources -> distinct pictures, hashed and their headers checked, and rejects with their reasons; on Ray Data."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray.data

from osdface.errors import UserError
from osdface.imagefile import ImageError
from pipelines import sources
from pipelines.pairs.manifest import Spec
from pipelines.prepare import check
from pipelines.sources import Source
from pipelines.store import Store
from pipelines.synthesize.config import Work

Progress = Callable[..., None]
Row = dict[str, Any]


def reject(uri: str, kind: str, reason: str) -> Row:
    """A file that is no pair, and why."""
    return {"source_uri": uri, "kind": kind, "reason": reason}


def listed(places: list[Source], out: Store) -> list[Row]:
    """Every file of the sources. Raises UserError for a source that is missing, empty or damaged.

    An output inside a source is none of its pictures.
    """
    skip = str(out.local) if out.local else ""
    return [file for index, source in enumerate(places) for file in sources.files(source, index, skip)]


def ingest(
    files: list[Row], spec: Spec, work: Work, known: dict[str, str], progress: Progress | None
) -> tuple[list[Row], list[Row]]:
    """Distinct pictures and rejects. `known`: hashes that are rejects already, with the reason.

    Raises UserError once there are more rejects than `work.max_rejects`.
    """
    inspected, bad = [], []
    for row in spread(partial(inspect, spec=spec, work=work), files, work.workers * 4, work):
        if row["fault"]:  # an archive or a store that fails must not turn its pictures into rejects
            raise UserError(row["fault"])
        inspected.append(row)
        if row["reason"]:
            bad.append(row)
            stop_early(bad, len(files), work)
        if progress:
            progress("inspected", len(inspected), len(files), {"rejects": len(bad)})
    pictures: dict[str, Row] = {}
    rejects = []
    # by name, and between equal names by what the dataset keeps: where the sources lie decides nothing
    for row in sorted(inspected, key=lambda row: (row["source_uri"], row["group"], row["source"], row["at"])):
        if row["reason"]:
            rejects.append(reject(row["source_uri"], row["kind"], row["reason"]))
        elif why := known.get(row["sha256"]):
            rejects.append(reject(row["source_uri"], "duplicate", why))
        elif (twin := pictures.get(row["sha256"])) is not None:
            rejects.append(reject(row["source_uri"], "duplicate", f"same bytes as {twin['source_uri']}"))
        else:
            pictures[row["sha256"]] = row
    return list(pictures.values()), rejects


def stop_early(rejects: list[Row], total: int, work: Work, more: Sequence[Row] = ()) -> None:
    """Raise UserError if more of `total` files are no pictures to use than `work.max_rejects`; twins are no fault."""
    if work.max_rejects is None:
        return
    bad = [row for row in (*rejects, *more) if row["kind"] != "duplicate"]
    allowed = work.max_rejects if work.max_rejects >= 1 or not work.max_rejects else work.max_rejects * total
    if len(bad) > allowed:
        first = "; ".join(f"{row['source_uri']}: {row['reason']}" for row in bad[:3])
        raise UserError(f"more than {allowed:g} of {total} files are no pictures to use ({first}); see --max-rejects")


def spread(function: Callable[[Row], Row], items: list[Row], tasks: int, work: Work) -> Iterator[Row]:
    """The results in any order; `tasks` share the items, as many at a time as there are workers."""
    if not items:
        return iter(())
    tasks = min(tasks, len(items))
    pool = ray.data.TaskPoolStrategy(size=min(work.workers, tasks))
    blocks = ray.data.from_items(items, override_num_blocks=tasks)
    return iter(blocks.map(function, num_cpus=work.cpus_per_worker, compute=pool).iter_rows())


def inspect(file: Row, spec: Spec, work: Work) -> Row:
    """A listed file with its hashes, or with why it is a reject; `fault` where a whole archive or store fails."""
    checked = file | {"sha256": "", "target_sha256": "", "kind": "file" if file["reason"] else "", "fault": ""}
    if file["reason"]:
        return checked
    try:
        checked["sha256"] = _hashed(file["at"], file["landmarks"], spec, work)
        if file["target_at"]:
            checked["target_sha256"] = _hashed(file["target_at"], file["landmarks"], spec, work)
    except ImageError as error:
        return checked | {"kind": error.fault, "reason": error.reason}
    except OSError as error:
        return checked | {"kind": "file", "reason": f"cannot be read ({error.strerror or error})"}
    except UserError as error:
        return checked | {"fault": str(error)}
    return checked


def _hashed(at: str, landmarks: str, spec: Spec, work: Work) -> str:
    data = sources.read(at, work.max_bytes)
    check(data, spec.size, spec.fit, spec.crop, landmarks, work.max_pixels)
    return hashlib.sha256(data).hexdigest()
