"""Pairs from 1024 px PNGs: our synthesis against a straightforward program, and Ray against a process pool.

`python -m benchmarks.synthesize` writes benchmarks/results/synthesize.json and .md. Photographs are crops of the two
real ones that come with scikit-image and insightface, turned and toned so that no two files are equal.
"""

import argparse
import contextlib
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import insightface
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import skimage.data

from benchmarks import record
from benchmarks.reference.degrade import degrade as reference_degrade
from degradations.degrade import degrade
from degradations.recipe import load
from pipelines import cluster, lease
from pipelines.pairs.manifest import Spec
from pipelines.sources import Source, files
from pipelines.store import Store
from pipelines.synthesize import ingest, plan, shards
from pipelines.synthesize.config import SynthConfig, Work

SIZE, SIDE = 512, 1024
LIBRARIES = ("opencv-python-headless", "numpy", "pyarrow", "pillow", "ray")
RECIPE = "dual_sequential"


def photographs(folder: Path, count: int) -> None:
    """`count` different 1024 px PNGs of the two photographs."""
    group = cv2.imread(str(Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"))
    sources = [cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR), group[:886, :886], group[:886, 394:]]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for k in range(count):
        image = sources[k % len(sources)]
        side = int(rng.integers(400, min(image.shape[:2])))
        top, left = (int(rng.integers(0, edge - side + 1)) for edge in image.shape[:2])
        crop = cv2.resize(image[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        toned = cv2.convertScaleAbs(crop[:, :: 1 - 2 * (k % 2)], alpha=float(rng.uniform(0.8, 1.1)))
        grain = rng.normal(0, 2, (SIDE, SIDE, 1)).astype(np.float32)  # enlarged pictures are smoother than cameras'
        cv2.imwrite(str(folder / f"{k:05d}.png"), np.clip(toned + grain, 0, 255).round().astype(np.uint8))


def reference(paths: Sequence[Path], traces: dict[Path, list[list[dict[str, Any]]]], out: Path) -> None:
    """The straightforward program: each pair decodes its picture, float32 throughout, PNGs as OpenCV writes them."""
    rows = []
    for path in paths:
        for variant, trace in enumerate(traces[path]):
            image = cv2.imread(str(path))
            hq = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            lq = reference_degrade(hq, trace)
            hq_bytes, lq_bytes = (cv2.imencode(".png", picture)[1].tobytes() for picture in (hq, lq))
            rows.append({"key": f"{path.stem}-{variant}", "hq": hq_bytes, "lq": lq_bytes})
    pq.write_table(pa.Table.from_pylist(rows), out)


def spec(variants: int) -> Spec:
    """The default formats: both lossless."""
    config = SynthConfig(sources=["x"], out="x", recipe=RECIPE, variants=variants, size=SIZE, shard_rows=32)
    return config.spec(load(RECIPE))


def one_core(folder: Path, scratch: Path, count: int, variants: int, repeat: int) -> dict[str, Any]:
    """Medians of interleaved runs over the same pictures and parameters, in this process alone."""
    wanted = spec(variants)
    paths = sorted(folder.glob("*.png"))[:count]
    traces = {path: _traces(path, wanted) for path in paths}
    source = Source(uri=str(folder))
    chosen = {path.name for path in paths}
    listing = [file for file in files(source, 0) if file["source_uri"] in chosen]

    def ours(run: int) -> None:
        store = Store(scratch / f"ours-{variants}-{run}")
        with lease.hold(store) as token:
            _all(shards.Job(store, wanted, [source], Work(), token), listing, map)

    times: dict[str, list[float]] = {"reference": [], "ours": []}
    reference(paths[:1], traces, scratch / "warm.parquet")
    ours(-1)
    for run in range(repeat):
        # Processor time: one thread works in both, and other programs on the machine do not count.
        work = partial(reference, paths, traces, scratch / "reference.parquet")
        times["reference"].append(_timed(work, time.process_time))
        times["ours"].append(_timed(partial(ours, run), time.process_time))
    rate = {name: count * variants / statistics.median(seconds) for name, seconds in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["reference"], times["ours"], strict=True))
    return {"variants": variants, "pairs_per_second": rate, "ratio": ratio, "seconds": times}


def _traces(path: Path, wanted: Spec) -> list[list[dict[str, Any]]]:
    hashed = hashlib.sha256(path.read_bytes()).hexdigest()
    hq = cv2.cvtColor(cv2.resize(cv2.imread(str(path)), (SIZE, SIZE), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
    return [degrade(hq, wanted.recipe, (wanted.seed, hashed, v)).trace for v in range(wanted.variants)]


def _all(job: shards.Job, listing: list[dict[str, Any]], spread: Callable) -> None:
    """Both passes of the synthesis by another way of spreading: what Ray is compared with."""
    inspected = list(spread(partial(ingest.inspect, spec=job.spec, work=job.work), listing))
    planned = plan.shards(inspected, job.spec, job.places, None)
    for result in spread(
        partial(shards.make_shard, job=job), [shards.as_task(i, rows) for i, rows in enumerate(planned)]
    ):
        assert not result["fault"], result["fault"]


def _timed(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    function()
    return clock() - start


def ray_cost(folder: Path, scratch: Path, workers: int, repeat: int) -> dict[str, Any]:
    """Ray Data against a process pool of as many workers, the same functions over the same pictures, both warm.

    By the clock, and by the processor time of all processes, Ray's own among them: other programs do not count there.
    """
    wanted, source = spec(1), Source(uri=str(folder))
    listing = list(files(source, 0))
    work = Work(workers=workers, cpus_per_worker=1)
    cluster.connect(cpus=workers)
    times: dict[str, list[float]] = {"pool": [], "ray": []}
    processor: dict[str, list[float]] = {"pool": [], "ray": []}
    with _pool(workers) as pool:
        for run in range(-1, repeat):  # the first is no measure: processes start and import
            some = listing if run >= 0 else listing[: 32 * workers]
            for name, way in (("pool", _by_pool), ("ray", _by_ray)):
                store = Store(scratch / f"{name}-{run}")
                with lease.hold(store) as token:
                    job = shards.Job(store, wanted, [source], work, token)
                    before = _processor_time()
                    seconds = _timed(partial(way, job, some, pool))
                if run >= 0:
                    times[name].append(seconds)
                    processor[name].append(_processor_time() - before)
    return {
        "pictures": len(listing),
        "workers": workers,
        "cost": _more(times),
        "processor_cost": _more(processor),
        "seconds": times,
        "processor_seconds": processor,
    }


def _more(times: dict[str, list[float]]) -> float:
    return statistics.median(b / a - 1 for a, b in zip(times["pool"], times["ray"], strict=True))


def _processor_time() -> float:
    """Seconds of this process and all below it: pool and Ray alike."""
    this = psutil.Process()
    total = 0.0
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            total += used.user + used.system
    return total


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        yield pool


def _by_pool(job: shards.Job, listing: list[dict[str, Any]], pool: ProcessPoolExecutor) -> None:
    _all(job, listing, pool.map)


def _by_ray(job: shards.Job, listing: list[dict[str, Any]], pool: ProcessPoolExecutor) -> None:
    pictures, rejects = ingest.ingest(listing, job.spec, job.work, {}, None)
    assert not rejects, rejects[:3]
    shards.make(job, plan.shards(pictures, job.spec, job.places, None), 0, lambda more: None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="for Ray against the pool")
    parser.add_argument("--few", type=int, default=24, help="pictures for one core")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    chosen = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, scratch = Path(temporary) / "photographs", Path(temporary)
        photographs(folder, chosen.pictures)
        cores = [one_core(folder, scratch, chosen.few, variants, 2 * chosen.repeat + 1) for variants in (1, 2, 4)]
        ray = ray_cost(folder, scratch, chosen.workers, chosen.repeat)
    result = {"machine": record.machine(LIBRARIES), "recipe": RECIPE, "one_core": cores, "ray": ray}
    rows = [
        {
            "variants": run["variants"],
            "reference, pairs/s": run["pairs_per_second"]["reference"],
            "ours, pairs/s": run["pairs_per_second"]["ours"],
            "ratio": run["ratio"],
        }
        for run in cores
    ]
    text = (
        f"1024 px PNG in, 512 px pairs in Parquet out, `{RECIPE}`, one core, lossless PNG on both sides\n\n"
        f"{record.table(rows)}\n\n"
        f"Ray Data against a process pool of {ray['workers']} workers, {ray['pictures']} pictures: "
        f"{100 * ray['cost']:+.1f} % by the clock, {100 * ray['processor_cost']:+.1f} % of processor time\n\n"
        f"{result['machine']}\n"
    )
    record.write("synthesize", result, text)
    print(text)


if __name__ == "__main__":
    main()
