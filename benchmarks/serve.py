"""The endpoint against direct batched calls of the same model in one process with the same cores; latency by load.

Both sides decode, restore whole pictures (by a UNet wider than the preset's, so that a step takes as long as a real
model's on an accelerator) and encode. One process has all cores for its network; the endpoint shares them between its
replicas; as many processes as there are replicas, without an endpoint, are told besides, since a network may be slow
to use several cores. Saturation: as many clients as two batches for each replica, with one request at a time.
Latency: requests at a steady pace, some share of the saturated rate, whatever has been answered. Clients run on the
same machine, which counts against the endpoint. Exits with 1 below 0.9 of the direct rate where a model step takes
100 ms or more (aimed at 0.95), or where refusals at twice the capacity take over 0.1 s (median) or 0.5 s (99 %).
"""

import argparse
import functools
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from benchmarks import record
from benchmarks.restore import make
from osdface import bundle, presets, procedural
from osdface.imagefile import read_image
from osdface.restorer import Restorer
from pipelines.serve.replica import OPTIONS
from pipelines.serve.settings import BATCH, Settings

RATIO, STEP = 0.9, 0.1
REFUSED = (0.1, 0.5)  # seconds: median, 99th percentile
LOADS = (0.25, 0.5, 0.75, 0.9, 2.0)
QUERY = {"faces": "whole", "identity": "false"}


def wider(shape: presets.Preset, times: int) -> presets.Preset:
    """The preset with a UNet of so many times its channels."""
    channels = [times * width for width in shape.unet["block_out_channels"]]
    return shape.model_copy(update={"unet": shape.unet | {"block_out_channels": channels}})


def bodies(folder: Path, size: int) -> list[bytes]:
    """JPEGs of faces."""
    procedural.make(folder, 16, size)
    made = []
    for path in sorted(folder.glob("*.png")):
        coded = io.BytesIO()
        Image.open(path).convert("RGB").save(coded, "JPEG", quality=90)
        made.append(coded.getvalue())
    return made


def direct(folder: Path, pictures: list[bytes], seconds: float, threads: int) -> dict[str, float]:
    """Pictures a second of one process, in batches; and the seconds of one picture alone, and of its network's step."""
    torch.set_num_threads(threads)
    restorer = Restorer.load(folder)

    def pass_(data: list[bytes]) -> None:
        images = [read_image(one) for one in data]
        for result in restorer(images, "whole", output_type="array", identity=False):
            Image.fromarray(result.image).save(io.BytesIO(), "PNG", **OPTIONS["png"])

    batch = pictures[:BATCH]
    pass_(batch)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        pass_(batch)
        done += len(batch)
    rate = done / (time.perf_counter() - start)
    alone = median(_timed(lambda: pass_(pictures[:1])) for _ in range(7))
    image = torch.zeros(1, 3, *read_image(pictures[0]).shape[:2])
    step = median(_timed(lambda: restorer.restore(image)) for _ in range(7))
    return {"rate": rate, "alone": alone, "step": step}


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ask(client: httpx.Client, body: bytes) -> tuple[float, int]:
    start = time.perf_counter()
    status = client.post("/v1/restore", params=QUERY, content=body).status_code
    return time.perf_counter() - start, status


def saturated(client: httpx.Client, pictures: list[bytes], seconds: float, clients: int) -> float:
    """Pictures a second with so many requests on their way at any time."""
    end = time.perf_counter() + seconds

    def one(number: int) -> int:
        done = 0
        while time.perf_counter() < end:
            _, status = ask(client, pictures[number % len(pictures)])
            done += status == 200
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        done = sum(pool.map(one, range(clients)))
    return done / (time.perf_counter() - start)


def paced(client: httpx.Client, pictures: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Latency (s) of answers and of refusals with so many requests a second."""
    with ThreadPoolExecutor(256) as pool:
        start, pending = time.perf_counter(), []
        for number in range(max(4, int(rate * seconds))):
            time.sleep(max(0, start + number / rate - time.perf_counter()))
            pending.append(pool.submit(ask, client, pictures[number % len(pictures)]))
        told = [future.result() for future in pending]
    answered = [took for took, status in told if status == 200]
    refused = [took for took, status in told if status in (429, 503)]
    other = len(told) - len(answered) - len(refused)
    return {"answered": len(answered), "refused": len(refused), "other": other} | _percentiles(answered, refused)


def _percentiles(answered: list[float], refused: list[float]) -> dict[str, float]:
    nothing = [float("nan")]
    told = {f"p{p}": float(np.percentile(answered or nothing, p)) for p in (50, 95, 99)}
    return told | {f"refused p{p}": float(np.percentile(refused or nothing, p)) for p in (50, 99)}


def measure(folder: Path, pictures: list[bytes], settings: Settings, seconds: float, rounds: int) -> dict[str, Any]:
    from ray import serve

    from pipelines import cluster
    from pipelines.serve import application, control

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cluster.connect(cpus=4)
    _, replicas = settings.replicas
    clients, threads = 2 * BATCH * replicas, settings.threads * replicas
    control.deploy("benchmark", application.of_folder(folder), settings, "127.0.0.1", port)
    limits = httpx.Limits(max_connections=300, max_keepalive_connections=300)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits) as client:
        saturated(client, pictures, min(3, seconds), clients)
        alone = median(ask(client, pictures[0])[0] for _ in range(15))
        rates, direct_, several = [], [], []
        for _ in range(rounds):
            rates.append(saturated(client, pictures, seconds, clients))
            direct_ += _direct_apart(folder, pictures, seconds, threads, 1)
            apart = _direct_apart(folder, pictures, seconds, settings.threads, replicas)
            several.append(sum(one["rate"] for one in apart))
        rate = median(rates)
        loads = {share: paced(client, pictures, share * rate, seconds) for share in LOADS}
    serve.shutdown()
    told = {key: median(one[key] for one in direct_) for key in direct_[0]}
    return {
        "direct": told, "http": {"rate": rate, "alone": alone}, "several": median(several),
        "ratio": rate / told["rate"], "ratio of several": rate / median(several),
        "overhead": alone - told["alone"], "loads": loads, "rates": rates,
        "direct rates": [one["rate"] for one in direct_], "rates of several": several,
    }  # fmt: skip


def _direct_apart(
    folder: Path, pictures: list[bytes], seconds: float, threads: int, processes: int
) -> list[dict[str, float]]:
    """`direct`, in so many processes at the same time, while the endpoint idles."""
    with tempfile.TemporaryDirectory() as name:
        for number, body in enumerate(pictures):
            (Path(name) / f"{number}.jpg").write_bytes(body)
        command = [sys.executable, "-m", "benchmarks.serve", "--direct", str(folder), name, str(seconds), str(threads)]
        with ThreadPoolExecutor(processes) as pool:
            begin = functools.partial(subprocess.run, stdout=subprocess.PIPE, check=True, text=True)
            said = [done.stdout for done in pool.map(begin, [command] * processes)]
    return [json.loads(text.splitlines()[-1]) for text in said]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--side", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument("--wider", type=int, default=6, help="how much wider the UNet is than the preset's")
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides in turn, whose medians count")
    parser.add_argument("--replicas", type=int, default=os.cpu_count(), help="of the endpoint")
    parser.add_argument("--threads", type=int, default=1, help="of torch in a replica; the process has all of theirs")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of serve.json and serve.md")
    parser.add_argument("--direct", nargs=4, metavar=("BUNDLE", "PICTURES", "SECONDS", "THREADS"), help="one process")
    options = parser.parse_args()
    if options.direct:
        folder, pictures, seconds, threads = options.direct
        data = [path.read_bytes() for path in sorted(Path(pictures).iterdir())]
        print(json.dumps(direct(Path(folder), data, float(seconds), int(threads))))
        return 0
    shape = wider(presets.preset(options.preset), options.wider)
    with tempfile.TemporaryDirectory() as name:
        os.environ["OSDFACE_HOME"] = f"{name}/home"
        folder = make(shape, Path(name))
        bundle.verify(folder)
        pictures = bodies(Path(name) / "faces", options.side)
        settings = Settings(threads=options.threads, replicas=(options.replicas, options.replicas))
        result = measure(folder, pictures, settings, options.seconds, options.rounds)
    machine = record.machine(["torch", "ray", "diffusers"])
    asked = {
        "preset": shape.name,
        "wider": options.wider,
        "side": options.side,
        "replicas": options.replicas,
        "threads": options.threads,
        "seconds": options.seconds,
    }
    result = {**machine, **asked, **result}
    text = report(result)
    record.write("serve", result, text, options.out)
    print(text)
    return 0 if good(result) else 1


def good(result: dict[str, Any]) -> bool:
    over = result["loads"][max(LOADS)]
    fast = result["ratio"] >= RATIO or result["direct"]["step"] < STEP
    quick = not over["refused"] or (over["refused p50"] <= REFUSED[0] and over["refused p99"] <= REFUSED[1])
    return fast and quick and not any(load["other"] for load in result["loads"].values())


def report(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    direct_, http = result["direct"], result["http"]
    clients = 2 * BATCH * result["replicas"]
    rates = [
        {
            "side": "direct, one process, batches of 8",
            "pictures/s": direct_["rate"],
            "one alone, ms": direct_["alone"] * 1e3,
        },
        {"side": f"direct, {result['replicas']} processes", "pictures/s": result["several"], "one alone, ms": "-"},
        {"side": f"HTTP, {clients} at a time", "pictures/s": http["rate"], "one alone, ms": http["alone"] * 1e3},
    ]
    loads = [
        {"load": f"{share:g} x", "answered": load["answered"], "refused": load["refused"], "other": load["other"]}
        | {f"{name}, ms": load[name] * 1e3 for name in ("p50", "p95", "p99", "refused p50", "refused p99")}
        for share, load in result["loads"].items()
    ]
    sections = [
        f"# The endpoint, {result['preset']} with a UNet {result['wider']} times as wide, {result['side']} px, "
        f"{result['replicas']} replicas of {result['threads']} threads",
        f"{result['date']}; {result['cpu']}, {result['cores']} cores; Python {result['python']}, {versions}. "
        "Random weights, float32; clients on the same machine; medians of both sides in turn.",
        f"A model step takes {direct_['step'] * 1e3:.0f} ms. The endpoint answers {result['ratio']:.3f} of one "
        f"process's rate (held to {RATIO} where a step takes {STEP * 1e3:.0f} ms or more, aimed at 0.95), "
        f"{result['ratio of several']:.3f} of that of {result['replicas']} processes, and a request alone takes "
        f"{result['overhead'] * 1e3:.1f} ms more.",
        record.table(rates),
        "Requests at a steady pace, as a multiple of the saturated rate:\n\n" + record.table(loads),
    ]
    return "\n\n".join(sections)


if __name__ == "__main__":
    sys.exit(main())
