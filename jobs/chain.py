"""`osdface run`: a chain of commands as one resumable job.

A step is done when its receipt carries the digest of its commands, their configurations and the steps before it, and
what it makes is there. A step that was killed runs again: its commands resume by themselves.
"""

import json
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from jobs import configs, console
from osdface.config import Strict, digest, home
from osdface.errors import UserError
from osdface.files import write_json


class ChainStep(Strict):
    """One step. `run`: command lines without the leading `osdface`; {work} and {STEP[key]} are filled in, the latter
    from the results of earlier steps. `makes`: paths it leaves behind. `after`: commands that run whatever happens."""

    name: str
    needs: list[str] = []
    run: list[str]
    after: list[str] = []
    makes: list[str] = []


class Chain(Strict):
    """A chain file: where it works under $OSDFACE_HOME, its steps, and lines to print at the end."""

    work: str
    steps: list[ChainStep]
    summary: list[str] = []


Invoke = Callable[[list[str]], dict[str, Any]]


class Runner:
    """Runs a chain. `invoke` runs one command line and returns its result."""

    def __init__(self, chain: Chain, invoke: Invoke):
        self.chain, self.invoke = chain, invoke
        self.work = home() / chain.work
        self.values: dict[str, Any] = {"work": str(self.work), "home": str(home())}
        self.keys: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Run or skip every step in order; returns the steps' results by name."""
        (self.work / "steps").mkdir(parents=True, exist_ok=True)
        for step in self.chain.steps:
            receipt = self._receipt(step)
            key = self.keys[step.name] = self._key(step)
            if receipt.get("key") == key and receipt.get("done") and self._made(step):
                console.say(f"[dim]-- {step.name}: done before ({receipt['seconds']:.0f} s), skipped[/]")
            else:
                receipt = self._execute(step, key, receipt)
            self.values[step.name] = receipt["result"]
            self.seconds[step.name] = receipt["seconds"]
        return {step.name: self.values[step.name] for step in self.chain.steps}

    def _key(self, step: ChainStep) -> str:
        settings = {}
        for line in (*step.run, *step.after):
            words = shlex.split(line)
            if "--config" in words:
                path = configs.find(words[words.index("--config") + 1], words[1])
                settings[line] = yaml.safe_load(path.read_text())
        try:
            needs = {name: self.keys[name] for name in step.needs}
        except KeyError as error:
            raise UserError(f"step '{step.name}' needs {error}, which is no earlier step") from None
        return digest({"run": step.run, "after": step.after, "configs": settings, "needs": needs})

    def _made(self, step: ChainStep) -> bool:
        return all(Path(self._fill(path)).exists() for path in step.makes)

    def _execute(self, step: ChainStep, key: str, receipt: dict[str, Any]) -> dict[str, Any]:
        if receipt and receipt["key"] != key:
            console.say(f"-- {step.name}: its inputs or configuration changed; what it made before is removed")
            for path in map(Path, map(self._fill, step.makes)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self._write(step, {"key": key, "done": False})
        start, result = time.monotonic(), {}
        try:
            for line in step.run:
                result |= self._command(line)
        finally:
            for line in step.after:
                self._command(line)
        done = {"key": key, "done": True, "result": result, "seconds": time.monotonic() - start}
        self._write(step, done)
        return done

    def _command(self, line: str) -> dict[str, Any]:
        words = [self._fill(word) for word in shlex.split(line)]
        console.say(f"\n[bold]$ osdface {shlex.join(words)}[/]")
        return self.invoke(words)

    def _fill(self, text: str) -> str:
        return text.format_map(self.values)

    def _receipt_path(self, step: ChainStep) -> Path:
        return self.work / "steps" / f"{step.name}.json"

    def _receipt(self, step: ChainStep) -> dict[str, Any]:
        path = self._receipt_path(step)
        return json.loads(path.read_text()) if path.exists() else {}

    def _write(self, step: ChainStep, receipt: dict[str, Any]) -> None:
        write_json(self._receipt_path(step), receipt)
