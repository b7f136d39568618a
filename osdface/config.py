"""Typed configuration: YAML files parsed into pydantic models that refuse what they do not know."""

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from osdface.errors import UsageError


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and names the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                known = f"did you mean '{near[0]}'?" if near else "known keys: " + ", ".join(cls.model_fields)
                raise ValueError(f"unknown key '{key}'; {known}")
        return data


Model = TypeVar("Model", bound=BaseModel)
EXTENDS = "extends"


def load(model: type[Model], path: Path | Sequence[Path], overrides: Iterable[str] = (), **values: Any) -> Model:
    """Read `path` (see `read`), lay `values` and then `overrides` ("a.b=c", the value in YAML) over it, and validate.

    Raises UsageError naming the file, the field and what is wrong with it.
    """
    data = read(path)
    data |= {key: value for key, value in values.items() if value is not None}
    for override in overrides:
        _lay_over(data, override)
    return parse(model, data, str(path) if isinstance(path, str | Path) else ", ".join(map(str, path)))


def read(path: Path | Sequence[Path]) -> dict[str, Any]:
    """The mapping in a YAML file, laid over that of the file which its key `extends` names, by a path from its folder.

    Of several files each is laid over those before it: its own lines, not what it extends when it stands alone.
    Mappings in mappings are merged, everything else is replaced. Raises UsageError where a file is missing, is no
    mapping, or extends itself.
    """
    first, *others = [path] if isinstance(path, str | Path) else path
    data = _extended(Path(first), ())
    for other in others:
        own = _mapping(Path(other))
        own.pop(EXTENDS, None)
        data = _merged(data, own)
    return data


def _extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    own = _mapping(path)
    if EXTENDS not in own:
        return own
    if not isinstance(named := own.pop(EXTENDS), str):
        raise UsageError(f"{path}: {EXTENDS} names one file, by its path from here")
    base = (path.parent / named).resolve()
    if base in (above := (*above, path.resolve())):
        raise UsageError(f"{path}: {EXTENDS} {named}, which extends this file: remove one of the two")
    if not base.is_file():
        raise UsageError(f"{path}: {EXTENDS} {named}, but there is no file {base}")
    return _merged(_extended(base, above), own)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UsageError(f"{path}: cannot read this configuration ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a configuration is a mapping of keys to values")
    return data


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key for key, value in above.items() if isinstance(value, dict) and isinstance(below.get(key), dict)}
    return below | above | {key: _merged(below[key], above[key]) for key in both}


def parse(model: type[Model], data: dict[str, Any], name: str) -> Model:
    """Validate `data`; `name` (a file or option) begins the message of the UsageError raised on a fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{name}: {field + ': ' if field else ''}{message}") from None


def _lay_over(data: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UsageError(f"--set {override}: write it as key=value, for example --set seed=1")
    *parents, last = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UsageError(f"--set {override}: '{parent}' holds a value, not keys")
    try:
        data[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"--set {override}: '{text}' is not valid YAML; quote what has special characters") from None


def resolved(config: BaseModel) -> dict[str, Any]:
    """The whole configuration, defaults filled in, as plain JSON types: what is stored beside every result."""
    return config.model_dump(mode="json")


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def home() -> Path:
    """Where one machine keeps its state: $OSDFACE_HOME, or ./.osdface."""
    return Path(os.environ.get("OSDFACE_HOME") or ".osdface").absolute()
