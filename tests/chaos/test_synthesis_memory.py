"""Memory of a synthesis does not grow with the dataset."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

ROOT = Path(__file__).parents[2]
MEGABYTE = 2**20

pytestmark = pytest.mark.chaos


def draw(folder: Path, count: int) -> Path:
    """Pictures of 256 px with some noise, about 100 kB each."""
    folder.mkdir()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        smooth = cv2.resize(rng.integers(0, 200, (5, 5, 3), np.uint8), (256, 256), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(smooth + rng.integers(0, 30, (256, 256, 3)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{seed:04d}.png"), noisy)
    return folder


class Peak:
    """The most memory that a command and all below it have held: resident together, and resident of the largest."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self.total = self.largest = 0
        with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
            reader = threading.Thread(target=lambda: self.said.append(run.stdout.read()))  # type: ignore[union-attr]
            self.said: list[bytes] = []
            reader.start()
            while run.poll() is None:
                self._look(psutil.Process(run.pid))
                time.sleep(0.1)
            reader.join()
        assert run.returncode == 0, self.said[0][-3000:]

    def _look(self, top: psutil.Process) -> None:
        try:
            resident = [process.memory_info().rss for process in [top, *top.children(recursive=True)]]
        except psutil.Error:  # one ended just now
            return
        self.total, self.largest = max(self.total, sum(resident)), max(self.largest, *resident)


def test_peak_memory_is_the_same_for_eight_times_the_pictures(tmp_path, capfd):
    env = os.environ | {"OSDFACE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    peaks = []
    for count in (250, 2000):
        sources = draw(tmp_path / str(count), count)
        out = tmp_path / f"pairs-{count}"
        words = f"data synth {sources} --out {out} --size 256 --variants 1 --shard-rows 50 --no-track"
        peaks.append(Peak([sys.executable, "-m", "jobs.cli", *words.split()], env))
    with capfd.disabled():
        for count, peak in zip((250, 2000), peaks, strict=True):
            total, largest = peak.total / MEGABYTE, peak.largest / MEGABYTE
            print(f"\n{count} pictures: {total:.0f} MB resident in all processes, {largest:.0f} MB in the largest")
    assert peaks[1].total < 1.15 * peaks[0].total
    assert peaks[1].largest < 1.15 * peaks[0].largest
