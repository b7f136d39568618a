"""The resumable chain: order, skipping, what a change reruns and why, plans, selections, kills, URLs, bad input."""

import json
import os
import shlex
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pytest
import yaml
from filelock import FileLock
from mlflow import MlflowClient

from jobs import console
from jobs.chain import Chain, Planned, Runner, Selection, code
from jobs.cli import app
from jobs.submission import parsing
from osdface.config import load, parse
from osdface.errors import UsageError, UserError
from pipelines import lease, tracking
from pipelines.store import Store

ROOT = Path(__file__).parent.parent.parent


class Machine:
    """Commands that write the file they are told to. `fail`: what a command, by its words, raises instead.

    A training goes on with the last of its `runs`, or begins another; `fail_later`: what it raises after that.
    """

    def __init__(self):
        self.ran: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.runs: list[str] = []
        self.fail_later: BaseException | None = None

    def __call__(self, words: list[str]) -> dict:
        if words[-1] == "--dry-run":
            return {"run": f"vre-{len(self.runs)}", "resumes": bool(self.runs)}
        line = shlex.join(words)
        self.ran.append(words[0])
        for part, error in self.fail.items():
            if part in line:
                raise error
        if words[0] == "train":
            self.runs += ["begun"] if "never" in words or not self.runs else []
            if self.fail_later:
                raise self.fail_later
        if "--out" in words:
            with fsspec.open(words[words.index("--out") + 1], "w") as file:
                file.write(line)
        return {"digest": f"of {line}", "number": len(words)}

    def take(self) -> list[str]:
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def machine() -> Machine:
    return Machine()


def three(**changes) -> dict:
    """faces -> pairs -> model, and sheet, which needs faces alone."""
    steps = {
        "faces": {"run": ["draw --out {work}/faces"], "makes": ["{work}/faces"]},
        "pairs": {"run": ["synth {faces[digest]} --out {work}/pairs"], "makes": ["{work}/pairs"]},
        "sheet": {"needs": ["faces"], "run": ["show"]},
        "model": {"needs": ["pairs"], "run": ["train --out {work}/model"], "makes": ["{work}/model"]},
    }
    for name, change in changes.items():
        steps[name] |= change
    return {"work": "w", "steps": [{"name": name, **step} for name, step in steps.items()]}


def run(machine: Machine, data: dict, **selected) -> Runner:
    runner = Runner(parse(Chain, data, "chain.yaml"), machine, Selection(**selected))
    runner.run()
    return runner


def plan(data: dict, **selected) -> dict[str, Planned]:
    def refuse(words: list[str]) -> dict:
        raise AssertionError(f"a plan ran {words}")

    runner = Runner(parse(Chain, data, "chain.yaml"), refuse, Selection(**selected))
    return {planned.step: planned for planned in runner.plan()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def sources(monkeypatch) -> dict[str, dict[str, str]]:
    """The code of each command, by its first word."""
    known: dict[str, dict[str, str]] = {}
    monkeypatch.setattr(code, "of", lambda words: known.get(words[0], {}))
    return known


def test_steps_run_in_order_with_earlier_results_filled_in(machine, home):
    runner = run(machine, three() | {"summary": ["made {pairs[digest]} in {work}"]})
    assert machine.ran == ["draw", "synth", "show", "train"]
    made = (home / "w" / "pairs").read_text()
    assert made == f"synth 'of draw --out {home}/w/faces' --out {home}/w/pairs"
    assert runner.summary() == [f"made of {made} in {home}/w"]
    assert set(runner.seconds) == {"faces", "pairs", "sheet", "model"}


def test_finished_steps_are_skipped_and_it_says_so(machine, home, capsys):
    run(machine, three())
    machine.take()
    capsys.readouterr()
    runner = run(machine, three() | {"summary": ["{model[number]}"]})
    assert machine.ran == []
    assert runner.summary() == ["3"]
    said = capsys.readouterr().out
    for step in ("faces", "pairs", "sheet", "model"):
        assert f"{step}: done before" in said


def test_a_change_reruns_what_depends_on_it_and_no_more(machine, home):
    run(machine, three())
    machine.take()
    run(machine, three(pairs={"run": ["synth again {faces[digest]} --out {work}/pairs"]}))
    assert machine.take() == ["synth", "train"]
    run(machine, three(faces={"run": ["draw more --out {work}/faces"]}))
    assert machine.take() == ["draw", "synth", "show", "train"]


def test_what_a_changed_step_made_is_removed_but_nothing_outside_the_work_folder(machine, home, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("data")
    folder = home / "w" / "old"
    first = three(model={"run": ["train"], "makes": ["{work}/old", str(theirs)]})
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    run(machine, first)
    machine.fail["train other"] = UserError("no")
    second = three(model={"run": ["train other"], "makes": ["{work}/old", str(theirs)]})
    with pytest.raises(UserError):
        run(machine, second)
    assert not folder.exists()
    assert theirs.read_text() == "data"


def test_a_step_whose_output_is_gone_runs_again_and_what_it_made_differently_does_too(machine, home):
    run(machine, three())
    machine.take()
    (home / "w" / "pairs").unlink()
    run(machine, three())
    assert machine.take() == ["synth"], "the same result again: what depends on it stays"
    (home / "w" / "pairs").unlink()
    different = Machine()
    Runner(parse(Chain, three(), "c"), lambda words: different(words) | {"run_id": "new"}).run()
    assert different.ran == ["synth", "train"]


@pytest.mark.parametrize("written", ["--config {file}", "--config={file}"])
def test_a_changed_configuration_file_reruns_its_step(machine, home, tmp_path, written):
    file = tmp_path / "vre.yaml"
    file.write_text("seed: 0")
    data = three(model={"run": [f"train vre {written.format(file=file)} --out {{work}}/model"]})
    run(machine, data)
    machine.take()
    file.write_text("seed: 0  # a comment changes nothing")
    run(machine, data)
    assert machine.take() == []
    file.write_text("seed: 1")
    run(machine, data)
    assert machine.take() == ["train"]


def test_a_changed_file_under_a_configuration_reruns_its_step(machine, home, tmp_path):
    base, file, other = (tmp_path / name for name in ("base.yaml", "vre.yaml", "other.yaml"))
    base.write_text("seed: 0")
    file.write_text("extends: base.yaml")
    other.write_text("batch_size: 2")
    data = three(model={"run": [f"train vre --config {file},{other} --out {{work}}/model"]})
    run(machine, data)
    machine.take()
    for changed in (base, other):
        changed.write_text("seed: 1\nbatch_size: 3")
        run(machine, data)
        assert machine.take() == ["train"]


def test_the_default_configuration_counts_too(machine, home, tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    file = tmp_path / "tiny" / "vre.yaml"
    file.write_text("seed: 0")
    monkeypatch.setattr("jobs.configs.FOLDER", tmp_path)
    data = three(model={"run": ["train vre --out {work}/model"]})
    run(machine, data)
    machine.take()
    file.write_text("seed: 1")
    run(machine, data)
    assert machine.take() == ["train"]


def test_inputs_from_elsewhere_count_by_their_contents(machine, home, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(b"one")
    data = three(faces={"inputs": [str(folder)]})
    run(machine, data)
    machine.take()
    (folder / "a" / "1.png").touch()
    run(machine, data)
    assert machine.take() == []
    (folder / "a" / "1.png").write_bytes(b"two")
    run(machine, data)
    assert machine.take() == ["draw", "synth", "show", "train"]
    (folder / "a" / "1.png").rename(folder / "2.png")
    run(machine, data)
    assert machine.take() == ["draw", "synth", "show", "train"]
    with pytest.raises(UserError, match="gone: this input of the chain is not there"):
        run(machine, three(faces={"inputs": [str(tmp_path / "gone")]}))


@pytest.mark.parametrize("error", [UserError("disk full"), RuntimeError("bug"), KeyboardInterrupt()])
def test_a_step_that_was_killed_runs_again_and_keeps_what_it_had(machine, home, error):
    data = three(model={"run": ["train --out {work}/model", "check"]})
    machine.fail["check"] = error
    with pytest.raises(type(error)):
        run(machine, data)
    assert machine.take() == ["draw", "synth", "show", "train", "check"]
    assert (home / "w" / "model").exists(), "its command resumes from it"
    machine.fail.clear()
    run(machine, data)
    assert machine.take() == ["train", "check"]


@pytest.mark.parametrize("receipt", ['{"key": "', "[]", '{"key": 1, "other": 2}'])
def test_a_damaged_receipt_is_no_receipt(machine, home, receipt):
    run(machine, three())
    machine.take()
    (home / "w" / "steps" / "sheet.json").write_text(receipt)
    run(machine, three())
    assert machine.take() == ["show"]


@pytest.mark.parametrize("error", [UserError("port 1 in use"), KeyboardInterrupt(), SystemExit(15)])
def test_after_runs_whatever_happens(machine, home, error):
    data = three(sheet={"run": ["show up", "show picture"], "after": ["down", "clean"]})
    machine.fail["show picture"] = error
    with pytest.raises(type(error)):
        run(machine, data)
    assert machine.take() == ["draw", "synth", "show", "show", "down", "clean"]


def test_after_a_kill_that_nothing_outlives_what_was_left_running_is_ended_first(machine, home):
    data = three(sheet={"run": ["show"], "after": ["down"]})
    run(machine, data)
    machine.take()
    path = home / "w" / "steps" / "sheet.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"done": False}))
    run(machine, data)
    assert machine.take() == ["down", "show", "down"]


def test_the_steps_own_failure_is_the_one_reported_and_a_failing_after_is_one_too(machine, home):
    data = three(sheet={"run": ["show"], "after": ["down", "clean"]})
    machine.fail = {"show": UserError("first"), "down": UserError("second")}
    with pytest.raises(UserError, match="^step 'sheet': first$"):
        run(machine, data)
    assert machine.take()[-2:] == ["down", "clean"]
    del machine.fail["show"]
    with pytest.raises(UserError, match="^step 'sheet': second$"):
        run(machine, data)
    machine.take()
    machine.fail.clear()
    run(machine, data)
    assert machine.take() == ["down", "clean", "show", "down", "clean", "train"]


def test_an_errors_exit_code_survives_the_steps_name(machine, home):
    machine.fail["train"] = UsageError("no such option")
    with pytest.raises(UsageError, match="step 'model': no such option"):
        run(machine, three())


def test_two_runs_of_a_chain_do_not_meet(machine, home):
    (home / "w").mkdir(parents=True)
    with FileLock(home / "w" / ".lock"), pytest.raises(UserError, match="another `osdface run` works there"):
        run(machine, three())
    assert machine.ran == []
    run(machine, three())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{work: w, steps: [{name: a, run: [x], neds: [b]}]}", "steps.0: unknown key 'neds'; did you mean 'needs'?"),
        ("{work: w, steps: [{name: a, run: x}]}", "steps.0.run: Input should be a valid list"),
        ("{steps: []}", "work: Field required"),
        ("{work: w, steps: [{name: a, needs: [b], run: []}]}", "step 'a' needs 'b', which is no earlier step"),
        ("{work: w, steps: [{name: a, run: ['x {b[digest]}']}]}", "step 'a' needs 'b', which is no earlier step"),
        ("{work: w, steps: [{name: a, run: ['x {a[digest]}']}]}", "step 'a' needs 'a', which is no earlier step"),
        ("{work: w, steps: [{name: a, run: []}, {name: a, run: []}]}", "two things are named 'a'"),
        ("{work: w, steps: [{name: home, run: []}]}", "two things are named 'home'"),
        ("{work: w, steps: [{name: a, run: ['']}]}", "step 'a': an empty command line"),
        ("{work: w, steps: [{name: ../a, run: []}]}", "step '../a': a name is a letter, then letters, digits, - and _"),
        ("{work: w, steps: [{name: a, run: ['x {oops']}]}", "expected '}'"),
        ('{work: w, steps: [{name: a, run: ["x \'oops"]}]}', "No closing quotation"),
        ("{work: w, steps: [], summary: ['{b[digest]}']}", "summary: 'b' is no step"),
        ("- a", "a configuration is a mapping"),
        ("{", "not valid YAML"),
    ],
)
def test_a_malformed_chain_file_is_refused_before_anything_runs(tmp_path, text, message):
    file = tmp_path / "chain.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(Chain, file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    with pytest.raises(UsageError, match="cannot read"):
        load(Chain, tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    "reference", ["{faces[digset]}", "{faces[digest][x]}", "{faces[digest]:d}", "{faces[digest].x.y}"]
)
def test_an_unknown_result_is_named_with_those_there_are(machine, home, reference):
    with pytest.raises(UsageError) as caught:
        run(machine, three(sheet={"run": [f"show {reference}"]}))
    assert reference in str(caught.value)
    assert "faces: digest, number" in str(caught.value)


def test_braces_of_a_value_are_doubled(machine, home):
    run(machine, three(model={"run": ["train --set 'losses={{mse: 1}}' --out {work}/model"]}))
    assert "losses={mse: 1}" in (home / "w" / "model").read_text()


def test_a_result_is_kept_in_plain_types(machine, home):
    data = {"work": "w", "steps": [{"name": "a", "run": ["x"]}, {"name": "b", "run": ["y {a[out]}"]}]}
    runner = Runner(parse(Chain, data, "c"), lambda words: {"out": home / "x", "sizes": (1, 2)})
    assert runner.run()["a"] == {"out": str(home / "x"), "sizes": [1, 2]}
    again = Runner(parse(Chain, yaml.safe_load(yaml.safe_dump(data)), "c"), machine)
    again.run()
    assert machine.ran == []


# Why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"pairs": {"run": ["synth {faces[digest]} --size 64 --out {work}/pairs"]}},
            "its commands changed: `synth {faces[digest]} --out {work}/pairs` -> "
            "`synth {faces[digest]} --size 64 --out {work}/pairs`",
        ),
        ({"pairs": {"after": ["clean"]}}, "its commands changed: none -> `clean`"),
        ({"pairs": {"needs": ["sheet"]}}, "needs step sheet, which reran"),
    ],
)
def test_a_change_is_told(machine, home, capsys, changes, why):
    data = three()
    data["steps"].insert(1, data["steps"].pop(2))  # sheet before pairs
    run(machine, data)
    for step in data["steps"]:
        step |= changes.get(step["name"], {})
    assert plan(data)["pairs"] == ("pairs", "run", why)
    run(machine, data)
    said = capsys.readouterr().out
    assert f"-- pairs: {why}" in said
    assert "-- model: needs step pairs, which reran" in said


def test_a_changed_configuration_is_told_key_by_key(machine, home, tmp_path):
    file = tmp_path / "osd.yaml"
    file.write_text("{batch_size: 8, losses: {mse: 1, edges: 2}, seed: 0, day: 2026-01-01}")
    data = three(model={"run": [f"train osd --config {file} --out {{work}}/model"]})
    run(machine, data)
    assert plan(data)["model"].outcome == "skip"
    file.write_text("{batch_size: 16, losses: {mse: 1}, seed: 0, day: 2026-01-01, ema: 0.9}")
    why = "configuration of `train osd` changed: batch_size 8 -> 16, ema absent -> 0.9, losses.edges 2 -> absent"
    assert plan(data)["model"].why == why
    file.write_text("{a: 1, b: 1, c: 1, d: 1, batch_size: 16, losses: {mse: 1}, seed: 0, day: 2026-01-01, ema: 0.9}")
    assert plan(data)["model"].why.endswith("batch_size 8 -> 16, c absent -> 1, 3 more")
    file.write_text("- no mapping")
    assert plan(data)["model"].why.startswith("configuration of `train osd` changed: all of it ")


def test_a_changed_input_is_told(machine, home, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.write_bytes(b"one")
    data = three(faces={"inputs": [str(pictures)]})
    run(machine, data)
    pictures.write_bytes(b"two")
    assert plan(data)["faces"].why == f"input {pictures} changed"


def test_a_receipt_of_another_version_reruns_its_step(machine, home):
    run(machine, three())
    path = home / "w" / "steps" / "sheet.json"
    receipt = json.loads(path.read_text())
    path.write_text(json.dumps({**receipt, "key": "old", "basis": {}}))
    assert plan(three())["sheet"].why == "it was done by another version of this program"


# Code


class TestChangedCode:
    """A training begins anew: else it would go on with the run of its configuration, which the other code finished."""

    LINE = "train vre --out {work}/model"

    @pytest.fixture
    def changed(self, machine, home, sources) -> dict:
        """A chain that was done before the code of its training changed."""
        sources["train"] = {"pipelines/train_vre.py": "a", "osdface/vre.py": "a"}
        data = three(model={"run": [self.LINE, "check"]})
        run(machine, data)
        assert machine.runs == ["begun"]
        sources["train"] = {"pipelines/train_vre.py": "b", "osdface/vre.py": "a"}
        machine.take()
        return data

    def test_is_told_and_reruns_its_step(self, machine, changed, capsys):
        assert plan(changed)["model"].why == "code of `train vre` changed: pipelines/train_vre.py"
        run(machine, changed)
        assert machine.take() == ["train", "check"]
        assert len(machine.runs) == 2
        run(machine, changed)
        assert machine.take() == []

    @pytest.mark.parametrize("more", [[], ["first"]])
    def test_also_if_it_was_refused_before_it_began(self, machine, home, changed, more):
        """And whatever else of the step has changed by then."""
        machine.fail["train"] = UserError("no GPUs")
        with pytest.raises(UserError, match="no GPUs"):
            run(machine, changed)
        assert not (home / "w" / "model").exists()
        machine.fail.clear()
        run(machine, three(model={"run": [*more, *changed["steps"][-1]["run"]]}))
        assert len(machine.runs) == 2

    def test_is_gone_on_with_once_it_has_begun(self, machine, changed):
        machine.fail_later = KeyboardInterrupt()
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                run(machine, changed)
        machine.fail_later = None
        run(machine, changed)
        assert len(machine.runs) == 2

    def test_changes_again_before_the_end(self, machine, changed, sources):
        machine.fail_later = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            run(machine, changed)
        machine.fail_later = None
        sources["train"] = {"pipelines/train_vre.py": "c", "osdface/vre.py": "a"}
        run(machine, changed)
        assert len(machine.runs) == 3

    def test_of_another_command_leaves_a_training_its_run(self, machine, home, changed, sources):
        run(machine, changed)
        sources["check"] = {"pipelines/check.py": "b"}
        run(machine, three(model={"run": [self.LINE, "check", "verify"]}))
        assert machine.take()[-3:] == ["train", "check", "verify"]
        assert len(machine.runs) == 2

    def test_before_receipts_knew_of_code(self, machine, home, changed):
        path = home / "w" / "steps" / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "old", "basis": {}}))
        run(machine, changed)
        assert len(machine.runs) == 2


@pytest.mark.parametrize("said", ["--resume vre-1", "--resume=vre-1"])
def test_a_line_that_says_how_to_resume_keeps_it(machine, home, sources, said):
    data = three(model={"run": [f"train vre {said} --out {{work}}/model"]})
    run(machine, data)
    made = (home / "w" / "model").read_text()
    run(machine, data, force=True)
    assert (home / "w" / "model").read_text() == made


class TestCode:
    """The code of commands, in a small project: vre and osd share `common`; pages and layout don't count."""

    @pytest.fixture
    def project(self, tmp_path, monkeypatch) -> Path:
        text = {
            "jobs/commands/train.py": (
                "def vre():\n    from pipelines.train_vre import Config\n"
                "def osd_():\n    from pipelines import train_osd\n"
                "def _both():\n    import pipelines.common\n"
            ),
            "pipelines/__init__.py": "from pipelines import serve",
            "pipelines/train_vre.py": "import torch\nfrom osdface.vre import VRE\ndef f():\n    'Doc.'\n    return 1\n",
            "pipelines/train_osd.py": "from degradations import Recipe\n",
            "pipelines/common.py": "import ray",
            "pipelines/serve.py": "",
            "osdface/__init__.py": "",
            "osdface/vre.py": "def VRE():\n    from osdface.presets import one",
            "osdface/presets/__init__.py": "one = 1",
            "osdface/presets/tiny.yaml": "a: 1",
            "degradations/__init__.py": "Recipe = 1",
            "degradations/recipes/gfpgan.yaml": "a: 1",
            "docs/page.md": "a page",
        }
        for name, written in text.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(written)
        monkeypatch.setattr(code, "ROOT", tmp_path)
        return tmp_path

    def of(self, line: str) -> dict[str, str]:
        code._module.cache_clear()
        code._reached.cache_clear()
        return code.of(line.split())

    def test_is_what_the_commands_function_imports(self, project):
        shared = {"pipelines/common.py"}
        vre = {"pipelines/train_vre.py", "osdface/vre.py", "osdface/presets/__init__.py", "osdface/presets/tiny.yaml"}
        osd = {"pipelines/train_osd.py", "degradations/__init__.py", "degradations/recipes/gfpgan.yaml"}
        assert self.of("train vre --out x").keys() == vre | shared
        assert self.of("train osd").keys() == osd | shared
        assert self.of("train").keys() == vre | osd | shared
        assert self.of("nothing") == self.of("") == {}

    @pytest.mark.parametrize(
        ("file", "written"),
        [
            ("docs/page.md", "another page"),
            ("pipelines/serve.py", "new = 1"),
            ("jobs/commands/train.py", "def vre(more=1):\n    from pipelines.train_vre import Config\n"),
            (
                "pipelines/train_vre.py",
                "import torch\nfrom osdface.vre import VRE\n\n\ndef f():  # why\n    'Other.'\n    return (1)\n",
            ),
        ],
    )
    def test_is_the_same_after_a_change_that_changes_no_result(self, project, file, written):
        before = self.of("train vre")
        (project / file).write_text(written)
        after = self.of("train vre")
        assert {name: after.get(name) for name in before if name != "pipelines/common.py"} == {
            name: found for name, found in before.items() if name != "pipelines/common.py"
        }

    @pytest.mark.parametrize("file", ["osdface/vre.py", "osdface/presets/tiny.yaml"])
    def test_is_another_after_a_change(self, project, file):
        before = self.of("train vre")
        (project / file).write_text("new: 1")
        assert self.of("train vre")[file] != before[file]

    def test_of_the_real_commands_is_apart(self):
        vre, synth, faces = (self.of(line) for line in ("train vre", "data synth", "faces make"))
        assert {"pipelines/train_vre.py", "pipelines/launch.py", "osdface/presets/tiny.yaml"} <= vre.keys()
        assert {"degradations/recipes/dual_sequential.yaml", "degradations/degrade.py"} <= synth.keys()
        assert vre.keys().isdisjoint({"pipelines/train_osd.py", "pipelines/serve/live.py", "osdface/restorer.py"})
        assert "pipelines/train_vre.py" not in synth
        assert all(name.startswith("osdface/") for name in faces)


# Plans


def test_a_plan_says_what_would_run_and_touches_nothing(machine, home):
    assert set(plan(three()).values()) == {Planned(name, "run", "not done yet") for name in plan(three())}
    assert not home.exists()
    run(machine, three())
    before = files(home)
    assert {planned.outcome for planned in plan(three()).values()} == {"skip"}
    changed = three(faces={"run": ["draw more --out {work}/faces"]})
    assert [(p.step, p.outcome, p.why.split(":")[0]) for p in plan(changed).values()] == [
        ("faces", "run", "its commands changed"),
        ("pairs", "run", "needs step faces, which reruns"),
        ("sheet", "run", "needs step faces, which reruns"),
        ("model", "run", "needs step pairs, which reruns"),
    ]
    assert files(home) == before


def test_a_plan_knows_that_lost_output_may_come_back_the_same(machine, home):
    run(machine, three())
    (home / "w" / "pairs").unlink()
    found = plan(three())
    assert found["pairs"] == ("pairs", "run", f"what it made is gone: {home}/w/pairs")
    assert found["model"] == ("model", "maybe", "needs step pairs: skipped if that gives the same again")
    assert found["sheet"].outcome == "skip"


def test_a_plan_of_a_chain_that_was_stopped(machine, home):
    machine.fail["synth"] = UserError("no")
    with pytest.raises(UserError):
        run(machine, three())
    found = plan(three())
    assert found["faces"] == ("faces", "skip", "done before (0 s)")
    assert found["pairs"] == ("pairs", "run", "it was stopped before its end, and goes on")
    assert found["model"] == ("model", "run", "not done yet")


@pytest.mark.parametrize("changed", ["faces", "pairs", "sheet", "model", "none"])
@pytest.mark.parametrize("selected", [{}, {"first": "pairs"}, {"only": "sheet"}, {"force": True}])
def test_what_was_planned_is_what_runs(machine, home, changed, selected):
    run(machine, three())
    machine.take()
    data = three()
    for step in data["steps"]:
        if step["name"] == changed:
            step["run"].append("more")
    planned = plan(data, **selected)
    done: list[str] = []
    invoke = Runner(parse(Chain, data, "c"), machine, Selection(**selected))
    taken, invoke._execute = invoke._execute, lambda step, judged: done.append(step.name) or taken(step, judged)
    invoke.run()
    assert done == [step for step, outcome, _ in planned.values() if outcome == "run"]


# Selections


def test_from_leaves_earlier_steps_as_they_are(machine, home, sources):
    run(machine, three())
    machine.take()
    changed = three(faces={"run": ["draw more"]}, model={"run": ["train more --out {work}/model"]})
    runner = run(machine, changed, first="sheet")
    assert machine.take() == ["train"]
    assert set(runner.seconds) == {"faces", "pairs", "sheet", "model"}
    run(machine, changed, first="sheet", force=True)
    assert machine.take() == ["show", "train"]


def test_only_runs_one_step(machine, home):
    run(machine, three())
    machine.take()
    run(machine, three(), only="pairs")
    assert machine.take() == []
    runner = run(machine, three() | {"summary": ["{pairs[digest]}", "{model[digest]}"]}, only="pairs", force=True)
    assert machine.take() == ["synth"]
    assert len(runner.summary()) == 1
    run(machine, three())
    assert machine.take() == [], "it gave the same again"


def test_force_runs_what_is_done_from_the_beginning(machine, home):
    run(machine, three())
    made = (home / "w" / "model").read_text()
    machine.take()
    run(machine, three(), force=True)
    assert machine.take() == ["draw", "synth", "show", "train"]
    assert (home / "w" / "model").read_text() == f"{made} --resume never"


@pytest.mark.parametrize("selected", [{"only": "model"}, {"first": "model"}])
def test_a_step_whose_needs_are_not_done_is_refused(machine, home, selected):
    option = "--only" if "only" in selected else "--from"
    refusal = f"^{option} model: it needs step 'pairs', which is not done; `--from pairs` begins there$"
    for _ in range(2):
        for try_it in (plan, lambda data, **more: run(machine, data, **more)):
            with pytest.raises(UserError, match=refusal) as caught:
                try_it(three(), **selected)
            assert caught.value.exit_code == 1
            assert machine.take() == []
        run(machine, three())  # then with what it made gone
        machine.take()
        (home / "w" / "pairs").unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "pair"], "--from pair: no such step; the chain's steps: faces, pairs, sheet, model"),
        (["--only", ""], "--only : no such step; the chain's steps: faces, pairs, sheet, model"),
        (["--only", "pair", "--dry-run", "--force"], "--only pair: no such step; the chain's steps: faces, pairs"),
        (["--from", "pairs", "--only", "pairs"], "--from and --only: give one of them"),
    ],
)
def test_a_wrong_selection_is_wrong_use(home, tmp_path, capfd, words, message):
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump(three()))
    assert console.run(app, ["run", str(file), *words, "--json"]) == 2
    assert message in json.loads(capfd.readouterr().out)["error"]
    assert not home.exists()


def test_a_plan_on_the_command_line(home, tmp_path, capfd):
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump(three()))
    assert console.run(app, ["run", str(file), "--dry-run", "--json"]) == 0
    out, err = capfd.readouterr()
    planned = json.loads(out)["plan"]
    assert planned[0] == {"step": "faces", "outcome": "run", "why": "not done yet"}
    assert "not done yet" in err
    assert not home.exists()


@pytest.mark.parametrize(
    ("line", "joins"),
    [
        ("data synth faces --out pairs", True),
        ("train vre --out vre", True),
        ("evaluate --model tiny --data pairs --out e", True),
        ("train vre --out vre --address 10.0.0.1:6379", False),
        ("restore a.png --url http://127.0.0.1:8000 --out b.png", False),
        ("faces make faces --count 2", False),
    ],
)
def test_a_cluster_is_joined_by_the_steps_that_can(line, joins):
    words = shlex.split(line)
    assert parsing.joining(words, "auto") == ([*words, "--address", "auto"] if joins else words)


# Elsewhere than on a disk: memory here, S3 in tests/pipelines/test_chain_s3.py


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


def test_everything_may_lie_under_a_url(machine, home, url):
    runner = run(machine, three() | {"work": f"{url}/", "summary": ["{work}"]})
    store = Store(url)
    assert store.names("steps") == ["faces.json", "model.json", "pairs.json", "sheet.json"]
    assert store.read("faces") == f"draw --out {url}/faces".encode()
    assert runner.summary() == [url]
    assert not home.exists()
    assert store.names(lease.FOLDER) == [], "the lease was given up"
    machine.take()
    run(machine, three() | {"work": url})
    assert machine.take() == []
    store.remove("pairs")
    assert plan(three() | {"work": url})["pairs"].why == f"what it made is gone: {url}/pairs"
    run(machine, three() | {"work": url})
    assert machine.take() == ["synth"]


@pytest.mark.parametrize("place", ["{work}", "{work}/", "{work}/../theirs", "{work}er", "memory://x/y", "{theirs}"])
def test_nothing_outside_the_work_url_is_removed(machine, home, url, tmp_path, place):
    place = place.replace("{theirs}", str(tmp_path / "theirs"))
    filled = place.replace("{work}", url)
    Store(filled.rstrip("/")).put("file", b"data")
    data = three(sheet={"makes": [place]}) | {"work": url}
    run(machine, data)
    run(machine, data, force=True)
    assert Store(filled.rstrip("/")).read("file") == b"data"


def test_what_a_changed_step_made_under_a_url_is_removed(machine, home, url):
    data = three(model={"run": ["train"], "makes": ["{work}/model"]}) | {"work": url}
    Store(url).put("model/a/weights", b"old")
    run(machine, data)
    machine.fail["train"] = UserError("no")
    with pytest.raises(UserError, match="no"):
        run(machine, data, only="model", force=True)
    assert not Store(url).exists("model")


def test_inputs_under_a_url_count_by_what_their_store_says(machine, home, url):
    store = Store(url)
    store.put("in/a/1.png", b"one")
    data = three(faces={"inputs": [f"{url}/in"]})
    run(machine, data)
    machine.take()
    run(machine, data)
    assert machine.take() == []
    store.put("in/a/2.png", b"two")
    run(machine, data)
    assert machine.take() == ["draw", "synth", "show", "train"]
    store.remove("in")
    with pytest.raises(UserError, match="in: this input of the chain is not there"):
        run(machine, data)


@pytest.mark.parametrize("work", ["nosuch://bucket/chain", "http://127.0.0.1:1/chain"])
def test_a_place_that_cannot_be_used_is_one_sentence(machine, home, work):
    with pytest.raises(UserError, match=f"^{work}.*: cannot be read or written .*the same command again continues$"):
        run(machine, three() | {"work": work})
    assert machine.ran == []


# Two at once


def test_two_runs_under_a_url_do_not_meet(machine, home, url):
    with lease.hold(Store(url)), pytest.raises(UserError, match=rf"^{url}: another job writes to it \(process"):
        run(machine, three() | {"work": url})
    assert machine.ran == []
    run(machine, three() | {"work": url})


def test_one_that_was_taken_over_writes_nothing_more(machine, home, url):
    """As after a pause of its machine that outlasted its lease."""
    store = Store(url)

    def invoke(words: list[str]) -> dict:
        if words[0] == "synth":
            store.put(f"{lease.FOLDER}/lease-9.json", json.dumps({"token": "theirs"}).encode())
        return machine(words)

    with pytest.raises(UserError, match="another job has taken this output over"):
        Runner(parse(Chain, three() | {"work": url}, "c"), invoke).run()
    assert machine.ran == ["draw", "synth"]
    assert json.loads(store.read("steps/pairs.json"))["done"] is False


HOLDER = """
import time
from jobs.chain import Chain, Runner
from osdface.config import parse

def invoke(words):
    print("at work", flush=True)
    time.sleep(100)

Runner(parse(Chain, {"work": "w", "steps": [{"name": "a", "run": ["first"]}]}, "c"), invoke).run()
"""


def test_a_killed_runs_lock_goes_with_it(machine, home, environment):
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        while first.stdout.readline().strip() != "at work":
            assert first.poll() is None
        with pytest.raises(UserError, match="w: another `osdface run` works there; wait until it has ended"):
            run(machine, three())
        first.kill()
    run(machine, three())
    assert machine.ran == ["draw", "synth", "show", "train"]


# The chain's own MLflow run


class TestRecord:
    CHAIN = {
        "work": "w",
        "steps": [
            {"name": "faces", "run": ["draw --out {work}/faces"], "makes": ["{work}/faces"]},
            {"name": "vre", "needs": ["faces"], "run": ["train"]},
            {"name": "osd", "needs": ["vre"], "run": ["check"]},
        ],
    }

    @pytest.fixture
    def client(self, mlflow_home) -> MlflowClient:
        return tracking.client(tracking.uri())

    @pytest.fixture
    def run_it(self, machine):
        """Run a chain whose command `train` begins, or goes on with, a run as trainings do."""

        def invoke(words: list[str]) -> dict:
            result = machine(words)
            if words[0] == "train":
                with tracking.run("vre", "vre-1", {"a": 1}, None, "", {}, self.resumed) as run:
                    self.resumed = run.id
                    if error := machine.fail.get("in train"):
                        raise error
                result["run_id"] = run.id
            return result

        self.resumed: str | None = None
        return lambda data=self.CHAIN, **more: Runner(parse(Chain, data, "c"), invoke, name="demo", **more).run()

    def chains(self, client: MlflowClient) -> list:
        found = client.get_experiment_by_name("osdface/chain")
        assert found
        return client.search_runs([found.experiment_id], order_by=["start_time ASC"])

    def steps(self, client: MlflowClient, run_id: str) -> dict:
        return json.loads(Path(client.download_artifacts(run_id, "steps.json")).read_text())

    def test_is_the_parent_of_the_steps_runs(self, client, run_it):
        made = run_it()
        (chain,) = self.chains(client)
        assert (chain.info.run_name, chain.info.status) == ("demo", "FINISHED")
        assert client.get_run(made["vre"]["run_id"]).data.tags["mlflow.parentRunId"] == chain.info.run_id
        assert client.get_parent_run(made["vre"]["run_id"]).info.run_id == chain.info.run_id
        assert {f"osdface.step.{name}" for name in made} <= chain.data.tags.keys()
        assert chain.data.metrics.keys() == {"seconds/faces", "seconds/vre", "seconds/osd"}
        steps = self.steps(client, chain.info.run_id)
        assert {step["outcome"] for step in steps.values()} == {"ran"}
        assert {len(step["key"]) for step in steps.values()} == {64}
        held = json.loads(Path(client.download_artifacts(chain.info.run_id, "chain.json")).read_text())
        assert parse(Chain, held, "chain.json") == parse(Chain, self.CHAIN, "c")
        assert "MLFLOW_RUN_CONTEXT" not in os.environ

    def test_each_run_of_a_chain_has_its_own(self, client, run_it):
        run_it()
        run_it()
        first, second = self.chains(client)
        assert {step["outcome"] for step in self.steps(client, second.info.run_id).values()} == {"skipped"}
        assert second.data.tags["osdface.step.vre"] == "skipped"
        assert first.data.tags["osdface.step.vre"] == "ran"

    @pytest.mark.parametrize(
        ("error", "outcome", "status"),
        [(UserError("no"), "failed", "FAILED"), (KeyboardInterrupt(), "stopped", "KILLED")],
    )
    def test_goes_on_after_a_stop_and_so_does_the_steps(self, client, run_it, machine, error, outcome, status):
        machine.fail["in train"] = error
        with pytest.raises(type(error)):
            run_it()
        (chain,) = self.chains(client)
        assert chain.info.status == status
        told = self.steps(client, chain.info.run_id)
        assert {name: step["outcome"] for name, step in told.items()} == {"faces": "ran", "vre": outcome}
        machine.fail.clear()
        made = run_it()
        (chain,) = self.chains(client)
        assert chain.info.status == "FINISHED"
        told = self.steps(client, chain.info.run_id)
        assert {name: step["outcome"] for name, step in told.items()} == {"faces": "ran", "vre": "ran", "osd": "ran"}
        assert told["vre"]["why"] == "it was stopped before its end, and goes on"
        assert client.get_parent_run(made["vre"]["run_id"]).info.run_id == chain.info.run_id

    def test_is_the_child_of_what_called_it(self, client, run_it, monkeypatch):
        with tracking.run("other", "flow", {}, None, "", {}) as above:
            monkeypatch.setenv("MLFLOW_RUN_CONTEXT", json.dumps({"mlflow.parentRunId": above.id, "team": "faces"}))
            made = run_it()
        (chain,) = self.chains(client)
        assert chain.data.tags["mlflow.parentRunId"] == above.id
        tags = client.get_run(made["vre"]["run_id"]).data.tags
        assert (tags["mlflow.parentRunId"], tags["team"]) == (chain.info.run_id, "faces")
        assert json.loads(os.environ["MLFLOW_RUN_CONTEXT"])["mlflow.parentRunId"] == above.id

    @pytest.mark.parametrize("context", ["{no json", "[1]"])
    def test_tags_that_are_none_are_said(self, client, run_it, monkeypatch, context, capsys):
        monkeypatch.setenv("MLFLOW_RUN_CONTEXT", context)
        with pytest.raises(UserError, match="step 'vre': MLFLOW_RUN_CONTEXT: no JSON object of tags"):
            run_it()
        assert "no MLflow run of the chain as a whole: MLFLOW_RUN_CONTEXT" in capsys.readouterr().out

    def test_a_server_that_is_down_stops_no_chain(self, machine, home, monkeypatch, free_port, capsys):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        Runner(parse(Chain, three(), "c"), machine, name="demo").run()
        assert machine.ran == ["draw", "synth", "show", "train"]
        assert "-- no MLflow run of the chain as a whole: MLflow at http://127.0.0.1" in capsys.readouterr().out

    def test_a_selection_is_recorded_too(self, client, run_it):
        run_it()
        run_it(selection=Selection(only="osd", force=True))
        _, second = self.chains(client)
        assert self.steps(client, second.info.run_id).keys() == {"osd"}
