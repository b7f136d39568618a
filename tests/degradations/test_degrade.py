import json

import cv2
import numpy as np
import pytest

from degradations import recipe as recipes
from degradations.degrade import degrade, replay
from degradations.recipe import Recipe, load

KEY = (0, "ab" * 32, 0)


def made(*stages: list[dict], **fields) -> Recipe:
    return Recipe.model_validate({"name": "made", "stages": [{"steps": steps} for steps in stages], **fields})


def operators(recipe: Recipe, image: np.ndarray, draws: int) -> list[list[str]]:
    return [[entry["op"] for entry in degrade(image, recipe, (0, "s", v)).trace] for v in range(draws)]


@pytest.mark.parametrize("name", recipes.names())
def test_replay_from_json_is_pixel_for_pixel(name, face):
    recipe = load(name)
    for variant in range(30):
        lq, trace = degrade(face, recipe, (7, "cd" * 32, variant))
        assert lq.shape == face.shape
        assert lq.dtype == np.uint8
        np.testing.assert_array_equal(replay(face, json.loads(json.dumps(trace))), lq)


@pytest.mark.parametrize("name", ["dual_sequential", "realesrgan", "restoreformer"])
@pytest.mark.parametrize("shape", [(96, 160), (64, 64), (17, 300), (600, 40)])
def test_any_shape_comes_back_in_its_shape(name, shape, face):
    image = cv2.resize(face, shape[::-1])
    for variant in range(5):
        lq, trace = degrade(image, load(name), (7, "cd" * 32, variant))
        assert lq.shape == image.shape
        np.testing.assert_array_equal(replay(image, trace), lq)


@pytest.mark.parametrize("name", ["dual_sequential", "realesrgan", "gfpgan"])
def test_a_pair_is_a_pure_function_of_its_arguments(name, face):
    recipe, before = load(name), face.copy()
    state = np.random.get_state()[1].copy()
    first = degrade(face, recipe, KEY)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.random.seed(1)
    degrade(face, recipe, (1, "ef" * 32, 3))
    cv2.setNumThreads(4)
    again = degrade(face, recipe, KEY)
    cv2.setNumThreads(1)
    assert first.trace == again.trace
    np.testing.assert_array_equal(first.lq, again.lq)
    np.testing.assert_array_equal(face, before)
    for other in ((1, KEY[1], 0), (0, "ba" * 32, 0), (0, KEY[1], 1)):
        assert not np.array_equal(degrade(face, recipe, other).lq, first.lq)


def test_sequential_applies_stages_by_their_probability_and_mixture_picks_one(face):
    rounds = [ops.count("Blur") for ops in operators(load("dual_sequential"), face, 300)]
    assert set(rounds) == {1, 2}
    assert 0.4 < np.mean([count == 2 for count in rounds]) < 0.6
    severe = []
    for v in range(300):
        trace = degrade(face, load("dual_mixture"), (0, "s", v)).trace
        assert [e["op"] for e in trace] == ["Blur", "Downsample", "GaussianNoise", "JPEG", "Resize"]
        severe.append(trace[3]["quality"] < 60)
    assert 0.1 < np.mean(severe) < 0.35  # half the pictures, 3 in 7 of them


def test_steps_come_by_their_probability_and_alternatives_by_their_shares(face):
    choices = [{"share": 0.2, "steps": [{"op": "Grey"}]}, {"share": 0.8, "steps": [{"op": "Haze"}, {"op": "JPEG"}]}]
    drawn = operators(made([{"op": "Shift", "p": 0.3}, {"p": 0.9, "one_of": choices}]), face, 1000)
    assert np.mean(["Shift" in ops for ops in drawn]) == pytest.approx(0.3, abs=0.05)
    assert np.mean(["Grey" in ops for ops in drawn]) == pytest.approx(0.18, abs=0.05)
    assert np.mean([ops[-2:] == ["Haze", "JPEG"] for ops in drawn]) == pytest.approx(0.72, abs=0.05)


def test_realesrgan_has_its_published_chances(face):
    image = cv2.resize(face, (32, 32))
    drawn = operators(load("realesrgan"), image, 2000)
    first = [ops[: ops.index("JPEG")] for ops in drawn]
    second = [ops[ops.index("JPEG") + 1 :] for ops in drawn]
    assert all(ops[0] == "USM" and ops[1] in ("Blur", "Sinc") and ops[2] == "Resize" for ops in first)
    assert np.mean([ops[1] == "Sinc" for ops in first]) == pytest.approx(0.1, abs=0.03)
    assert np.mean([ops[3] == "PoissonNoise" for ops in first]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([ops[0] == "Blur" for ops in second]) == pytest.approx(0.72, abs=0.05)
    assert np.mean([ops[0] == "Sinc" for ops in second]) == pytest.approx(0.08, abs=0.03)
    tails = [ops[ops.index("Resize") + 2 :] for ops in second]
    orders = {
        ("Resize", "Sinc", "JPEG", "Resize"): 0.4, ("Resize", "JPEG", "Resize"): 0.1,
        ("JPEG", "Resize", "Sinc", "Resize"): 0.4, ("JPEG", "Resize", "Resize"): 0.1,
    }  # fmt: skip
    for order, share in orders.items():
        assert np.mean([tuple(tail) == order for tail in tails]) == pytest.approx(share, abs=0.05)


def test_realesrgan_s_second_round_is_relative_to_a_quarter(photographs):
    for v in range(20):
        sizes = [
            e["height"] for e in degrade(photographs["crowd"], load("realesrgan"), (0, "s", v)).trace if "height" in e
        ]
        assert 76 <= sizes[0] <= 768
        assert 38 <= sizes[1] <= 153
        assert sizes[2:] == [128, 512]


def test_the_order_of_shares_in_a_file_decides_nothing(face):
    kernels = {"iso": 0.3, "plateau_iso": 0.3, "aniso": 0.4}
    one, other = (
        made([{"op": "Blur", "kernels": dict(pairs)}]) for pairs in (kernels.items(), reversed(kernels.items()))
    )
    assert one.digest == other.digest
    for v in range(10):
        assert degrade(face, one, (0, "s", v)).trace == degrade(face, other, (0, "s", v)).trace


def test_a_patch_is_another_draw_of_the_picture_given(face):
    grey = [{"op": "Grey"}]
    lq, trace = degrade(face, made([{"op": "Haze"}, {"op": "Patch", "size": 200, "steps": grey}]), KEY)
    haze, patch = trace
    assert patch["size"] == 50  # a quarter of 200, for a picture of 128
    inside = np.zeros(face.shape[:2], bool)
    inside[patch["top"] : patch["top"] + 50, patch["left"] : patch["left"] + 50] = True
    np.testing.assert_array_equal(lq[inside], replay(face, [{"op": "Grey"}])[inside])
    np.testing.assert_array_equal(lq[~inside], replay(face, [haze])[~inside])
    np.testing.assert_array_equal(replay(face, json.loads(json.dumps(trace))), lq)


def test_lengths_scale_with_the_picture_and_factors_do_not(photographs, face):
    recipe = load("diffbir")
    small, large = (degrade(image, recipe, KEY).trace for image in (face, photographs["astronaut"]))
    assert large[0]["sigma_x"] == pytest.approx(4 * small[0]["sigma_x"])
    assert (large[0]["kernel_size"], small[0]["kernel_size"]) == (41, 11)
    for i, name in ((1, "factor"), (2, "sigma"), (3, "quality")):
        assert large[i][name] == small[i][name]


def test_wrong_pictures_and_traces_are_refused(face):
    for wrong in (face.astype(np.float32), face[..., 0], np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8 RGB"):
            degrade(wrong, load("gfpgan"), KEY)
    with pytest.raises(ValueError, match="no operator 'Blurr'; did you mean 'Blur'"):
        replay(face, [{"op": "Blurr"}])
