"""The `osdface` command."""

import os
import signal
import sys
from pathlib import Path

import typer

from jobs import console
from jobs.commands import (
    data,
    demo,
    doctor,
    evaluate,
    faces,
    gc,
    jobs,
    models,
    profile,
    restore,
    runs,
    serve,
    train,
    weights,
)

app = typer.Typer(
    name="osdface",
    help="One-step diffusion face restoration: paired data, training, registry and endpoint.\n\nExample: osdface demo",
    add_completion=False,
    rich_markup_mode=None,
)
for group in (faces, data, train, runs, models, serve, weights, jobs):
    app.add_typer(group.app, name=group.__name__.rsplit(".", 1)[-1])
for single in (demo, doctor, evaluate, gc, profile, restore):
    single.register(app)


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends what it began, as after Ctrl-C
    # pip puts ninja beside this Python; DeepSpeed's op finds it on PATH alone, also where no venv is activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    sys.exit(console.run(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
