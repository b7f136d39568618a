"""What a synthesis would make, from a few rows made now: `--dry-run`."""

import time
from typing import NamedTuple

from pipelines.synthesize import plan
from pipelines.synthesize.build import begun, work_of
from pipelines.synthesize.config import SynthConfig
from pipelines.synthesize.ingest import Progress, ingest
from pipelines.synthesize.rows import pairs

SAMPLE = 12  # pictures


class Estimate(NamedTuple):
    """pictures, rejects: as hashing and headers say. bytes, seconds: expected, from a sample of rows."""

    pictures: int
    rejects: int
    rows: int
    shards: int
    bytes: int
    seconds: float


def estimate(config: SynthConfig, progress: Progress | None = None, address: str | None = None) -> Estimate:
    """What `synthesize` would make of this configuration; writes nothing. Raises UserError as it would."""
    _, spec, files = begun(config, address)
    work = work_of(config)
    pictures, rejects = ingest(files, spec, work, {}, progress)
    planned = plan.shards(pictures, spec, config.sources, config.limit)
    rows = [row for shard in planned for row in shard]
    firsts = [row for row in rows if row["variant"] == 0]
    sample = {row["source_sha256"] for row in firsts[:: max(1, len(firsts) // SAMPLE)][:SAMPLE]}
    chosen = [row for row in rows if row["source_sha256"] in sample]
    list(pairs(chosen[:1], spec, config.sources, work, []))  # imports and first calls are no measure
    start = time.perf_counter()
    made = list(pairs(chosen, spec, config.sources, work, []))
    seconds = time.perf_counter() - start
    size = sum(len(row[name] or b"") for row in made for name in ("hq", "lq", "target"))
    share = len(rows) / max(len(made), 1)
    return Estimate(
        len(firsts),
        len(rejects),
        len(rows),
        len(planned),
        round(size * share),
        round(seconds * share / work.workers, 1),
    )
