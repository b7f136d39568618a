"""Recipe files: what ships, and what is said of one at fault."""

import re

import pytest
import yaml

from degradations import recipe as recipes
from degradations.recipe import Recipe, RecipeError, load

SHIPPED = {
    "codeformer_large", "codeformer_small", "daefr", "difface", "diffbir", "dual_mixture", "dual_sequential",
    "dual_sequential_64", "gfpgan", "realesrgan", "restoreformer", "vqfr_v2",
}  # fmt: skip

# Kernel size, sigma, factor, noise, quality: the published tables.
TABLE = {
    "gfpgan": [(41, 41), (0.1, 10), (0.8, 8), (0, 20), (60, 100)],
    "vqfr_v2": [(41, 41), (1, 15), (1, 30), (0, 20), (30, 90)],
    "codeformer_large": [(41, 41), (1, 15), (4, 30), (0, 20), (30, 80)],
    "codeformer_small": [(41, 41), (0.1, 10), (1, 12), (0, 15), (60, 100)],
    "restoreformer": [(39, 41), (0.1, 10), (0.8, 8), (0, 20), (60, 100)],
    "daefr": [(39, 41), (0.1, 15), (0.8, 30), (0, 20), (30, 100)],
    "difface": [(41, 41), (0.1, 15), (0.8, 32), (0, 20), (30, 100)],
    "diffbir": [(41, 41), (0.1, 12), (1, 12), (0, 15), (30, 100)],
}


def test_the_recipes_that_ship_have_their_files_names():
    assert set(recipes.names()) == SHIPPED
    for name in SHIPPED:
        assert load(name).name == name


@pytest.mark.parametrize("name", TABLE)
def test_single_rounds_have_the_published_numbers(name):
    by_op = {step.op: step for step in load(name).stages[0].steps}
    blur = by_op["Blur"]
    assert blur.kernels == {"iso": 0.5, "aniso": 0.5}
    assert TABLE[name] == [
        blur.kernel_size, blur.sigma, by_op["Downsample"].factor, by_op["GaussianNoise"].sigma, by_op["JPEG"].quality,
    ]  # fmt: skip


def test_inferred_values_say_so():
    for name in ("dual_sequential", "dual_sequential_64", "dual_mixture", "realesrgan"):
        assert "inferred" in (recipes.FOLDER / f"{name}.yaml").read_text()


def recipe(**step) -> dict:
    return {"name": "mine", "stages": [{"steps": [step]}]}


BLUR = {"op": "Blur"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (recipe(op="JPG"), "no operator 'JPG'; did you mean 'JPEG'"),
        (recipe(op="JPEG", qualty=30), "unknown key 'qualty'; did you mean 'quality'"),
        (recipe(op="JPEG", quality=[0, 120]), "stages.0.steps.0.JPEG.quality: a quality is between 1 and 100"),
        (recipe(**BLUR, sigma=[5, 1]), "low <= high"),
        (recipe(**BLUR, sigma=[0, 1]), "above 0"),
        (recipe(**BLUR, kernel_size=[40, 41]), "odd"),
        (recipe(**BLUR, kernels={"iso": 0.5, "aniso": 0.6}), "sum to 1"),
        (recipe(**BLUR, kernels={"isometric": 1}), "stages.0.steps.0.Blur.kernels"),
        (recipe(**BLUR, p=2), "less than or equal to 1"),
        (recipe(op="GaussianNoise", sigma="loud"), "GaussianNoise.sigma"),
        (recipe(op="Resize", modes=[]), "Resize.modes"),
        (recipe(one_of=[{"share": 0.5, "steps": []}, {"share": 0.6, "steps": []}]), "in one_of the shares sum to 1"),
        (recipe(one_of=[{"share": 0.5, "stepz": []}]), "did you mean 'steps'"),
        (recipe(op="Patch", size=64, steps=[{"op": "Bluur"}]), "did you mean 'Blur'"),
        ({"name": "mine", "stages": [{"steps": ["Blur"]}]}, "a step is"),
        ({"name": "mine", "stages": []}, "stages is empty"),
        ({"name": "mine", "mode": "mixture", "stages": [{"prob": 0.5, "steps": []}]}, "prob sum to 1"),
        ({"name": "mine", "stage": []}, "did you mean 'stages'"),
    ],
)
def test_a_recipe_at_fault_names_file_and_field(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=re.escape(message)) as error:
        load(path)
    assert str(path) in str(error.value)


def test_no_yaml_and_unknown_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load(path)
    with pytest.raises(RecipeError, match="dual_sequential"):
        load("dual")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_digest_is_of_the_content(name, tmp_path):
    shipped = load(name)
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(shipped.model_dump(mode="json")))  # no comment, no anchor, another layout
    assert load(path) == shipped
    assert load(path).digest == shipped.digest
    other = shipped.model_dump() | {"name": "other"}
    assert Recipe.model_validate(other).digest != shipped.digest
