"""The resumable chain: order, skipping, what a change reruns, kills, `after`, and faults of a chain file."""

import json
import shlex

import pytest
import yaml
from filelock import FileLock

from jobs.chain import Chain, Runner
from osdface.config import load, parse
from osdface.errors import UsageError, UserError


class Machine:
    """Commands that write the file they are told to. `fail`: what a command, by its words, raises instead."""

    def __init__(self):
        self.ran: list[str] = []
        self.fail: dict[str, BaseException] = {}

    def __call__(self, words: list[str]) -> dict:
        line = shlex.join(words)
        self.ran.append(words[0])
        for part, error in self.fail.items():
            if part in line:
                raise error
        if "--out" in words:
            with open(words[words.index("--out") + 1], "w") as file:
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


def run(machine: Machine, data: dict) -> Runner:
    runner = Runner(parse(Chain, data, "chain.yaml"), machine)
    runner.run()
    return runner


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
