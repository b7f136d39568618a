"""Configuration files, --set, and the sentence for every mistake in them."""

import hashlib
from pathlib import Path

import pytest
from pydantic import Field

from osdface.config import Strict, digest, home, load, parse, read, resolved
from osdface.errors import UsageError


class Optimizer(Strict):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


class Training(Strict):
    steps: int = Field(default=10, ge=1)
    name: str = "run"
    resume: bool = True
    note: str | None = None
    optimizer: Optimizer = Optimizer()
    out: Path = Path("out")


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text("steps: 20\noptimizer: {lr: 0.1}\n")
    return path


class TestLoad:
    def test_lays_values_and_then_overrides_over_the_file(self, file):
        assert load(Training, file) == Training(steps=20, optimizer=Optimizer(lr=0.1))
        assert load(Training, file, steps=30, name=None).steps == 30
        assert load(Training, file, ["steps=40", "steps=50"], steps=30).steps == 50

    def test_an_override_inside_a_mapping_keeps_its_other_keys(self, file):
        loaded = load(Training, file, ["optimizer.betas=[0.5, 0.9]"])
        assert loaded.optimizer == Optimizer(lr=0.1, betas=(0.5, 0.9))
        assert load(Training, file, ["optimizer={lr: 1}"]).optimizer == Optimizer(lr=1)

    @pytest.mark.parametrize(
        ("override", "key", "value"),
        [
            ("steps=3", "steps", 3),
            ("resume=false", "resume", False),
            ("name=a=b", "name", "a=b"),
            ("name=", "name", None),
            ("note=null", "note", None),
            ("note='null'", "note", "null"),
            ("out=/a/b", "out", Path("/a/b")),
        ],
    )
    def test_overrides_are_typed_as_yaml_is(self, file, override, key, value):
        if (key, value) == ("name", None):
            with pytest.raises(UsageError, match="name: Input should be a valid string"):
                load(Training, file, [override])
        else:
            assert getattr(load(Training, file, [override]), key) == value

    def test_an_empty_file_is_all_defaults(self, tmp_path):
        (tmp_path / "empty.yaml").write_text("# nothing\n")
        assert load(Training, tmp_path / "empty.yaml") == Training()


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("stepps: 3", r"unknown key 'stepps'; did you mean 'steps'\?"),
            ("optimizer: {lrr: 3}", r"optimizer: unknown key 'lrr'; did you mean 'lr'\?"),
            ("optimizer: {momentum: 3}", "optimizer: unknown key 'momentum'; known keys: lr, betas"),
            ("1: 3", "unknown key '1'; known keys: steps, name"),
            ("steps: many", "steps: Input should be a valid integer"),
            ("steps: 0", "steps: Input should be greater than or equal to 1"),
            ("optimizer: {betas: [1, x]}", r"optimizer\.betas\.1: Input should be a valid number"),
            ("optimizer: fast", "optimizer: Input should be a valid dictionary"),
            ("- a\n- b", "a configuration is a mapping of keys to values"),
            ("just words", "a configuration is a mapping of keys to values"),
            ("a: [1", "not valid YAML"),
            ("a: b: c", "not valid YAML"),
        ],
    )
    def test_in_a_file_name_it_and_the_field(self, file, text, sentence):
        file.write_text(text)
        with pytest.raises(UsageError, match=rf"train\.yaml: {sentence}") as caught:
            load(Training, file)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        ("override", "sentence"),
        [
            ("steps", r"--set steps: write it as key=value"),
            ("=3", r"--set =3: write it as key=value"),
            ("steps.more=3", r"--set steps\.more=3: 'steps' holds a value, not keys"),
            ("steps=[1", r"--set steps=\[1: '\[1' is not valid YAML"),
            ("steps=x", r"steps: Input should be a valid integer"),
            ("stps=3", r"unknown key 'stps'; did you mean 'steps'\?"),
            ("optimizer.l=3", r"optimizer: unknown key 'l'; did you mean 'lr'\?"),
            ("optimizr.lr=3", r"unknown key 'optimizr'; did you mean 'optimizer'\?"),
            ("optimizer..lr=3", r"unknown key ''"),
        ],
    )
    def test_in_an_override(self, file, override, sentence):
        with pytest.raises(UsageError, match=sentence):
            load(Training, file, [override])

    def test_a_file_that_is_missing_or_a_folder_or_no_text(self, tmp_path):
        with pytest.raises(UsageError, match=r"none\.yaml: cannot read this configuration \(No such file"):
            load(Training, tmp_path / "none.yaml")
        with pytest.raises(UsageError, match=r"cannot read this configuration \(Is a directory"):
            load(Training, tmp_path)
        (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
        with pytest.raises(UsageError, match=r"picture\.yaml: not valid YAML"):
            load(Training, tmp_path / "picture.yaml")

    def test_a_required_key_that_is_missing(self):
        class Needs(Strict):
            data: Path

        with pytest.raises(UsageError, match="x: data: Field required"):
            parse(Needs, {}, "x")


class TestFilesOverFiles:
    @pytest.fixture
    def above(self, file, tmp_path) -> Path:
        (tmp_path / "sets").mkdir()
        path = tmp_path / "sets" / "train.yaml"
        path.write_text("extends: ../train.yaml\noptimizer: {betas: [0.5, 0.9]}\nname: above\n")
        return path

    def test_a_file_is_laid_over_the_one_it_extends(self, above, monkeypatch):
        expected = Training(steps=20, name="above", optimizer=Optimizer(lr=0.1, betas=(0.5, 0.9)))
        assert load(Training, above) == expected
        monkeypatch.chdir(above.parent.parent)
        assert load(Training, Path("sets/train.yaml")) == expected, "the path is from the file, not from here"
        assert load(Training, above, ["name=set"], steps=3) == expected.model_copy(update={"name": "set", "steps": 3})
        (above.parent / "more.yaml").write_text("extends: train.yaml\nsteps: 5\n")
        assert load(Training, above.parent / "more.yaml") == expected.model_copy(update={"steps": 5})

    def test_lists_and_values_are_replaced_whole(self, above, file):
        file.write_text("name: {a: 1}\noptimizer: 3\nbetas: [1, 2, 3]\n")
        above.write_text("extends: ../train.yaml\nname: x\noptimizer: {lr: 1}\nbetas: [4]\n")
        assert read(above) == {"name": "x", "optimizer": {"lr": 1}, "betas": [4]}

    def test_of_several_files_the_last_is_on_top_and_only_the_first_extends(self, above, file, tmp_path):
        small = tmp_path / "small.yaml"
        small.write_text("steps: 1\nnote: small\n")
        assert load(Training, [small, above]) == Training(
            steps=1, note="small", name="above", optimizer=Optimizer(betas=(0.5, 0.9))
        )
        assert load(Training, [above, small]) == load(Training, above).model_copy(update={"steps": 1, "note": "small"})
        small.write_text("stps: 1\n")
        with pytest.raises(UsageError, match=r"train\.yaml, .*small\.yaml: unknown key 'stps'"):
            load(Training, [file, small])

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("extends: none.yaml", r"train\.yaml: extends none\.yaml, but there is no file .*none\.yaml"),
            ("extends: [a.yaml]", "extends names one file"),
            ("extends: train.yaml", r"train\.yaml: extends train\.yaml, which extends this file"),
            ("extends: sets/train.yaml", r"sets/train\.yaml: extends \.\./train\.yaml, which extends this file"),
            ("extends: list.yaml", r"list\.yaml: a configuration is a mapping of keys to values"),
        ],
    )
    def test_what_cannot_be_extended_is_refused_in_one_sentence(self, above, file, tmp_path, text, sentence):
        (tmp_path / "list.yaml").write_text("[1]")
        file.write_text(text)
        with pytest.raises(UsageError, match=sentence) as caught:
            load(Training, file)
        assert "\n" not in str(caught.value)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Training().steps = 3


def test_resolved_is_whole_and_plain_and_reads_back():
    plain = resolved(Training(out=Path("/x")))
    assert plain["out"] == "/x"
    assert plain["optimizer"] == {"lr": 1e-3, "betas": [0.9, 0.999]}
    assert parse(Training, plain, "x") == Training(out=Path("/x"))


class TestDigest:
    def test_depends_on_content_not_on_order(self):
        assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
        assert digest({"a": 1}) != digest({"a": 1.5})
        assert digest([1, 2]) != digest([2, 1])

    def test_is_sha256_of_canonical_json(self):
        assert digest({"b": "é", "a": None}) == hashlib.sha256('{"a":null,"b":"é"}'.encode()).hexdigest()


def test_home_is_the_variable_s_or_beside_the_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSDFACE_HOME", "state")
    assert home() == tmp_path / "state"
    monkeypatch.setenv("OSDFACE_HOME", "")
    assert home() == tmp_path / ".osdface"
