"""The code that a command's result depends on, by file.

Not the git revision, which a page of docs changes, nor all sources, since a change to the endpoint must not repeat days
of training: the modules of osdface, degradations and pipelines that the command's own function imports, directly or
through others, with the YAML files of their packages. Comments, docstrings and layout don't count; neither does jobs/,
which only parses and shows, nor what version other libraries are of.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("osdface", "degradations", "pipelines")
LENGTH = 12  # hex digits of a file's digest
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def of(words: list[str]) -> dict[str, str]:
    """File -> digest of all code that a command line's result depends on; empty for what is no command."""
    command = ROOT / "jobs" / "commands" / f"{words[0]}.py" if words else ROOT
    if not command.is_file():
        return {}
    return dict(_reached(command, words[1] if len(words) > 1 else ""))


@functools.cache
def _reached(command: Path, name: str) -> dict[str, str]:
    digests: dict[Path, str] = {}
    ahead = set(_imports(_own(ast.parse(command.read_bytes()), name)))
    while ahead:
        path = ahead.pop()
        digests[path], imports = _module(path)
        ahead |= imports - digests.keys()
    digests |= {path: _digest(path.read_bytes()) for path in _settings(digests)}
    return {path.relative_to(ROOT).as_posix(): found for path, found in sorted(digests.items())}


def _own(tree: ast.Module, name: str) -> ast.Module:
    """A command group's module without the functions of its other commands."""
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    if any(_named(node, name) for node in public):
        tree.body = [node for node in tree.body if node not in public or _named(node, name)]
    return tree


def _named(node: ast.stmt, command: str) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.rstrip("_") == command.replace("-", "_")


@functools.cache
def _module(path: Path) -> tuple[str, frozenset[Path]]:
    """The digest of a module's code, and the modules that it imports."""
    tree = ast.parse(path.read_bytes())
    imports = frozenset(_imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return _digest(ast.dump(tree).encode()), imports


def _imports(tree: ast.AST) -> Iterator[Path]:
    """The files of ours that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [_file(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name is a module of the package; else it is the package's own.
            found = [_file(f"{node.module}.{alias.name}") or _file(node.module) for alias in node.names]
        else:
            continue
        yield from filter(None, found)


def _file(module: str) -> Path | None:
    package, _, _ = module.partition(".")
    path = ROOT / module.replace(".", "/")
    known = (path.with_suffix(".py"), path / "__init__.py") if package in PACKAGES else ()
    return next((file for file in known if file.is_file()), None)


def _settings(modules: Iterable[Path]) -> Iterator[Path]:
    """The YAML files of the packages that modules are of: recipes, presets."""
    for package in {path.parent for path in modules}:
        for file in package.rglob("*.yaml"):
            if next(folder for folder in file.parents if (folder / "__init__.py").is_file()) == package:
                yield file


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:LENGTH]
