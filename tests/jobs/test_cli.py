"""The `osdface` command as it is typed: help, configuration faults, exit codes, start-up."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from jobs import configs, console
from jobs.cli import app
from osdface.errors import UsageError

OSDFACE = Path(sys.executable).parent / "osdface"


def commands() -> dict[str, typer.core.TyperCommand]:
    found, groups = {}, [("", typer.main.get_command(app))]
    while groups:
        path, group = groups.pop()
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                groups.append((f"{path}{name} ", command))
            else:
                found[path + name] = command
    return found


COMMANDS = commands()


def test_the_commands_of_the_chain_are_there():
    assert {
        "demo", "doctor", "evaluate", "restore", "run", "faces make", "faces photographs", "data synth", "data verify",
        "data preview", "data info", "data regenerate", "data extend", "data remove", "data diff", "data card",
        "train base", "train vre", "train osd", "models register", "models promote", "models lineage",
        "serve up", "serve status", "serve down", "weights list", "weights check", "weights add",
        "jobs submit", "jobs list", "jobs status", "jobs logs", "jobs stop", "jobs retry",
    } <= set(COMMANDS)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_does_with_an_example_that_parses(name, capsys):
    assert console.run(app, [*name.split(), "--help"]) == 0
    words = capsys.readouterr().out.split()
    text = " ".join(words)
    for part in ("Usage: osdface", "--json", "--debug", f"Example: osdface {name}"):
        assert part in text
    _, _, example = COMMANDS[name].help.partition("Example: osdface ")
    COMMANDS[name].make_context(name, shlex.split(example)[len(name.split()) :])


@pytest.mark.parametrize("arguments", [[], ["--help"], *([group, "--help"] for group in ("faces", "data", "train"))])
def test_help_of_all_and_of_groups(arguments, capsys):
    assert console.run(app, arguments) == 0
    assert "Commands:" in capsys.readouterr().out


def synth(tmp_path, *words: str) -> list[str]:
    return ["data", "synth", str(tmp_path), "--out", str(tmp_path / "out"), "--json", *words]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "shard_rowz=3"], "unknown key 'shard_rowz'; did you mean 'shard_rows'?"),
        (["--set", "variants=many"], "variants: Input should be a valid integer"),
        (["--set", "split.test=a"], "split.test: Input should be a valid number"),
        (["--set", "seed"], "--set seed: write it as key=value"),
        (["--set", "=3"], "--set =3: write it as key=value"),
        (["--set", "seed.x=3"], "--set seed.x=3: 'seed' holds a value"),
        (["--set", "seed=["], "--set seed=["),
        (
            ["--config", "huge"],
            "--config huge: neither a file nor a set that has synth.yaml; sets: paper, shipped, tiny",
        ),
        (["--frob"], "No such option: --frob"),
    ],
)
def test_a_fault_of_configuration_is_named_and_leaves_nothing(words, sentence, tmp_path, home, capsys):
    assert console.run(app, synth(tmp_path, *words)) == 2
    out, err = capsys.readouterr()
    assert sentence in json.loads(out)["error"]
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_fault_in_a_configuration_file_is_named_with_the_file(tmp_path, home, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: dual_sequential\nsizee: 64\n")
    assert console.run(app, synth(tmp_path, "--config", str(file))) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert f"{file}: unknown key 'sizee'; did you mean 'size'?" in error
    file.write_text("recipe: [\n")
    assert console.run(app, synth(tmp_path, "--config", str(file))) == 2
    assert f"{file}: not valid YAML" in json.loads(capsys.readouterr().out)["error"]


def test_config_is_a_file_or_a_set(tmp_path):
    file = tmp_path / "vre.yaml"
    file.write_text("{}")
    assert configs.find(str(file), "vre") == [file]
    paper, learned = configs.FOLDER / "paper" / "vre.yaml", configs.FOLDER / "ablations" / "learned" / "osd.yaml"
    assert configs.find("paper", "vre") == [paper]
    assert configs.find("ablations/learned", "osd") == [learned]
    assert configs.find(f"paper, {file}", "vre") == [paper, file]
    (with_comma := tmp_path / "a,b.yaml").write_text("{}")
    assert configs.find(str(with_comma), "vre") == [with_comma]
    with pytest.raises(UsageError, match=r"--config ablations/none: neither .* sets: ablations/without_association, "):
        configs.find("tiny,ablations/none", "vre")


def test_the_installed_command_fails_in_one_sentence(tmp_path):
    words = [OSDFACE, "faces", "make", tmp_path / "faces", "--count", "0", "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--count 0" in json.loads(done.stdout)["error"]
    assert done.stderr.startswith("Error: --count 0")
    assert "Traceback" not in done.stderr


def test_help_waits_for_no_heavy_library_and_ninja_is_found():
    code = """
import json, os, shutil, sys
sys.argv, os.environ["PATH"] = ["osdface", "--help"], "/nowhere"
import jobs.cli
try:
    jobs.cli.main()
except SystemExit as end:
    print(json.dumps({"code": end.code, "modules": list(sys.modules), "ninja": shutil.which("ninja")}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    heavy = {"torch", "ray", "mlflow", "deepspeed", "diffusers", "numpy", "pyarrow", "cv2", "albumentations"}
    assert heavy.isdisjoint(seen["modules"])
    assert seen["code"] == 0
    assert Path(seen["ninja"]).parent == Path(sys.executable).parent
