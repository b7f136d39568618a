"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Optional

import typer

Config = Annotated[Optional[str], typer.Option(help="A YAML file, or a set's name under jobs/configs (tiny, paper).")]  # noqa: UP045
Set = Annotated[list[str], typer.Option("--set", help="Override one key of the configuration: a.b=value. Repeatable.")]
Address = Annotated[Optional[str], typer.Option(help="A Ray cluster to join (HOST:PORT or auto); local Ray if absent.")]  # noqa: UP045
Out = Annotated[Path, typer.Option(help="Where the result goes.")]
Model = Annotated[str, typer.Option(help="A bundle folder, models:/NAME/VERSION, models:/NAME@ALIAS, or an alias.")]
