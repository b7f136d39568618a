"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    str | None, typer.Option(help="YAML files or sets under jobs/configs (tiny, paper), by commas; later ones on top.")
]
Set = Annotated[list[str], typer.Option("--set", help="Override one key of the configuration: a.b=value. Repeatable.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster to join (HOST:PORT or auto); local Ray if absent.")]
Out = Annotated[Path, typer.Option(help="Where the result goes.")]
Model = Annotated[str, typer.Option(help="A bundle folder, models:/NAME/VERSION, models:/NAME@ALIAS, or an alias.")]
