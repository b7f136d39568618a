"""What a step's key is the digest of, and in words how two of them differ."""

from collections.abc import Iterator
from typing import Any

from jobs import configs
from osdface.config import read
from osdface.errors import UsageError

SHOWN = 4  # differences of a kind that are named
ABSENT = "absent"


def settings(words: list[str]) -> Any:
    """The configuration files that a command line reads, laid over each other; None where it reads none."""
    given = [after for word, after in zip(words, [*words[1:], ""], strict=True) if word == "--config"]
    given += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    kind = words[1] if len(words) > 1 else ""
    if not given and not (configs.FOLDER / configs.DEFAULT / f"{kind}.yaml").is_file():
        return None
    files = configs.find(given[0] if given else configs.DEFAULT, kind)
    try:
        return read(files)
    except UsageError:
        return [path.read_text() for path in files]  # the command will say what is wrong with it


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How what a step was done from differs from what it would be done from now: a phrase for each kind."""
    if before.keys() != now.keys():
        return "it was done by another version of this program"
    phrases = [_lines(before[kind], now[kind]) for kind in ("run", "after")]
    for command, found in _of_commands(before["configs"], now["configs"]):
        phrases.append(f"configuration of {command} changed: {_few([f'{n} {old} -> {new}' for n, old, new in found])}")
    for command, found in _of_commands(before["code"], now["code"]):
        phrases.append(f"code of {command} changed: {_few([name for name, _, _ in found])}")
    phrases += [f"input {name} changed" for name, _, _ in _differing(before["inputs"], now["inputs"])]
    phrases += [f"needs step {name}, which reran" for name, _, _ in _differing(before["needs"], now["needs"])]
    return "; ".join(filter(None, phrases))


def _lines(before: list[str], now: list[str]) -> str:
    if before == now:
        return ""
    gone, new = ([f"`{line}`" for line in one if line not in other] for one, other in ((before, now), (now, before)))
    return f"its commands changed: {_few(gone) or 'none'} -> {_few(new) or 'none'}"


def _of_commands(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, Any, Any]]]]:
    """The command, and what differs, of each line or command that is in both."""
    for line in now:
        if line in before and (found := list(_differing(before[line], now[line]))):
            yield f"`{' '.join(line.split()[:2])}`", found


def _differing(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name (a.b), value before and now of whatever differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = f"{name}.{key}" if name else key
            yield from _differing(before.get(key, ABSENT), now.get(key, ABSENT), inner)
    elif before != now:
        yield name or "all of it", before, now


def _few(named: list[str]) -> str:
    more = [f"{len(named) - SHOWN} more"] if len(named) > SHOWN else []
    return ", ".join([*named[:SHOWN], *more])
