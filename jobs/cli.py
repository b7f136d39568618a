"""The `osdface` command."""

import sys

import typer

from jobs import console
from jobs.commands import data, demo, doctor, evaluate, faces, models, restore, serve, train

app = typer.Typer(
    name="osdface",
    help="One-step diffusion face restoration: paired data, training, registry and endpoint.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
for group in (faces, data, train, models, serve):
    app.add_typer(group.app, name=group.__name__.rsplit(".", 1)[-1])
for single in (demo, doctor, evaluate, restore):
    single.register(app)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(console.run(typer.main.get_command(app), sys.argv[1:]))


if __name__ == "__main__":
    main()
