import hashlib
import json

import albumentations as A
import cv2
import numpy as np
import pytest
import skimage.data

from degradations import recipe as recipes
from degradations import transforms as T
from degradations.degrade import degrade, replay
from degradations.recipe import Recipe, RecipeError, load

FACE = cv2.resize(skimage.data.astronaut()[:256, 100:356], (128, 128), interpolation=cv2.INTER_AREA)
KEY = (0, "ab" * 32, 0)


@pytest.mark.parametrize("name", recipes.names())
def test_replay_from_json_is_pixel_for_pixel(name):
    recipe = load(name)
    for variant in range(20):
        lq, trace = degrade(FACE, recipe, (7, "cd" * 32, variant))
        assert lq.shape == FACE.shape
        assert lq.dtype == np.uint8
        np.testing.assert_array_equal(replay(FACE, json.loads(json.dumps(trace))), lq)


def test_a_pair_is_a_pure_function_of_its_arguments():
    recipe = load("dual_sequential")
    before = FACE.copy()
    first = degrade(FACE, recipe, KEY)
    np.random.seed(1)
    degrade(FACE, recipe, (1, "ef" * 32, 3))
    cv2.setNumThreads(4)
    again = degrade(FACE, recipe, KEY)
    cv2.setNumThreads(1)
    assert first.trace == again.trace
    np.testing.assert_array_equal(first.lq, again.lq)
    np.testing.assert_array_equal(FACE, before)
    for other in ((1, KEY[1], 0), (0, "ba" * 32, 0), (0, KEY[1], 1)):
        assert not np.array_equal(degrade(FACE, recipe, other).lq, first.lq)


# sha256 of the LQ pictures of FACE: no release changes them in silence.
PINNED = {
    "dual_mixture": ("303464b896b7e762", "eaf6777634768989"),
    "dual_sequential": ("ddf5d4c54ec9b1aa", "543d2ffae5f41086"),
    "gfpgan": ("d7ee7fd0448d89e7", "443db6820756082c"),
}


@pytest.mark.parametrize("name", recipes.names())
def test_pictures_and_recipes_are_pinned(name):
    recipe = load(name)
    pictures = hashlib.sha256(b"".join(degrade(FACE, recipe, (0, "00" * 32, v)).lq.tobytes() for v in range(4)))
    assert (recipe.digest[:16], pictures.hexdigest()[:16]) == PINNED[name]


def test_sequential_applies_stages_by_their_probability_and_mixture_picks_one():
    both = [
        len([e for e in degrade(FACE, load("dual_sequential"), (0, "s", v)).trace if e["op"] == "Blur"])
        for v in range(300)
    ]
    assert set(both) == {1, 2}
    assert 0.4 < np.mean([count == 2 for count in both]) < 0.6
    severe = []
    for v in range(300):
        trace = degrade(FACE, load("dual_mixture"), (0, "s", v)).trace
        assert [e["op"] for e in trace] == ["Blur", "Downsample", "Noise", "JPEG", "ResizeTo"]
        severe.append(trace[3]["quality"] < 60)
    assert 0.1 < np.mean(severe) < 0.35  # half the pictures, 3 in 7 of them


def test_lengths_scale_with_the_picture_and_factors_do_not():
    recipe = load("gfpgan")
    small, large = (degrade(cv2.resize(FACE, (s, s)), recipe, KEY).trace for s in (128, 512))
    assert large[0]["sigma_x"] == pytest.approx(4 * small[0]["sigma_x"])
    assert (large[0]["kernel_size"], small[0]["kernel_size"]) == (41, 11)
    assert [large[1]["factor"], large[2]["sigma"], large[3]["quality"]] == [
        small[1]["factor"], small[2]["sigma"], small[3]["quality"],
    ]  # fmt: skip


# Each operator against a plain transcription of its formula, within one 8-bit step.


def close(image: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(image.astype(float) - expected).max() <= 1.0


@pytest.mark.parametrize(("sigma_x", "sigma_y", "angle"), [(2.0, 2.0, 0.0), (3.0, 1.0, 0.7), (0.5, 2.5, -2.0)])
def test_blur_is_a_normalised_gaussian_with_reflected_borders(sigma_x, sigma_y, angle):
    size, half = 13, 6
    weights = np.zeros((size, size))
    for y in range(-half, half + 1):
        for x in range(-half, half + 1):
            rotated = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ (x, y)
            weights[y + half, x + half] = np.exp(-0.5 * ((rotated[0] / sigma_x) ** 2 + (rotated[1] / sigma_y) ** 2))
    weights /= weights.sum()
    padded = np.pad(FACE.astype(float), ((half, half), (half, half), (0, 0)), "reflect")
    expected = sum(weights[y, x] * padded[y : y + 128, x : x + 128] for y in range(size) for x in range(size))
    close(T.Blur().apply(FACE, kernel_size=size, sigma_x=sigma_x, sigma_y=sigma_y, angle=angle), expected)


def test_downsample_is_bilinear_to_the_floor_of_the_size():
    factor = 2.9
    small = T.Downsample().apply(FACE, factor=factor, floor=4)
    side = int(128 / factor)
    assert small.shape == (side, side, 3)
    at = np.clip((np.arange(side) + 0.5) * 128 / side - 0.5, 0, 127)
    low, part = np.floor(at).astype(int), at - np.floor(at)
    high = np.minimum(low + 1, 127)
    image = FACE.astype(float)
    rows = image[low] * (1 - part)[:, None, None] + image[high] * part[:, None, None]
    close(small, rows[:, low] * (1 - part)[None, :, None] + rows[:, high] * part[None, :, None])
    assert T.Downsample().apply(FACE, factor=60.0, floor=4).shape == (4, 4, 3)


def test_noise_is_gaussian_of_its_sigma_and_clipped():
    grey = np.full((256, 256, 3), 128, np.uint8)
    noisy = T.Noise().apply(grey, sigma=15.0, seed=3).astype(float)
    assert noisy.mean() == pytest.approx(128, abs=0.3)
    assert noisy.std() == pytest.approx(15, rel=0.03)
    assert np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1] == pytest.approx(0, abs=0.02)
    black = T.Noise().apply(np.zeros((64, 64, 3), np.uint8), sigma=15.0, seed=3)
    assert (black == 0).mean() > 0.4


def test_jpeg_is_libjpegs_at_that_quality_in_rgb():
    import io

    from PIL import Image

    coded = io.BytesIO()
    Image.fromarray(FACE).save(coded, "JPEG", quality=60)
    expected = np.asarray(Image.open(coded)).astype(float)
    assert np.abs(T.JPEG().apply(FACE, quality=60).astype(float) - expected).mean() < 1.0


def test_parameters_fill_their_documented_ranges():
    for transform, name, low, high in [
        (T.Blur(sigma=(0.1, 10)), "sigma_x", 0.1, 10),
        (T.Downsample((0.8, 8)), "factor", 0.8, 8),
        (T.Noise((0, 20)), "sigma", 0, 20),
        (T.JPEG((60, 100)), "quality", 60, 100),
        (T.Blur(kernel_size=(7, 21)), "kernel_size", 7, 21),
    ]:
        transform.set_random_seed(1)
        drawn = np.array([transform.get_params()[name] for _ in range(3000)], float)
        span = high - low
        assert low <= drawn.min() <= low + 0.02 * span
        assert high - 0.02 * span <= drawn.max() <= high
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.03 * span)
    blur = T.Blur()
    blur.set_random_seed(1)
    assert np.mean([(p := blur.get_params())["sigma_x"] == p["sigma_y"] for _ in range(2000)]) == pytest.approx(
        0.5, abs=0.04
    )


def chain() -> list[A.ImageOnlyTransform]:
    blur = T.Blur((9, 9), sigma=(1, 3))
    return [blur, T.Downsample((2, 4)), T.Noise((5, 10)), T.JPEG((40, 60)), T.ResizeTo(128, 128)]


def test_operators_work_in_anybodys_pipeline():
    compose = A.Compose(chain(), seed=3)
    image = compose(image=FACE)["image"]
    assert image.shape == FACE.shape
    np.testing.assert_array_equal(A.Compose(chain(), seed=3)(image=FACE)["image"], image)
    loaded = A.from_dict(A.to_dict(compose))
    loaded.set_random_seed(3)
    np.testing.assert_array_equal(loaded(image=FACE)["image"], image)
    recorded = A.ReplayCompose(chain())(image=FACE)
    again = A.ReplayCompose.replay(recorded["replay"], image=FACE)["image"]
    np.testing.assert_array_equal(again, recorded["image"])
    as_float = A.Compose(chain(), seed=3)(image=FACE.astype(np.float32) / 255)["image"]
    assert as_float.dtype == np.float32
    assert np.abs(as_float * 255 - image).mean() < 2


def test_wrong_pictures_and_traces_are_refused():
    with pytest.raises(ValueError, match="uint8 RGB"):
        degrade(FACE.astype(np.float32), load("gfpgan"), KEY)
    with pytest.raises(ValueError, match="no operator 'Melt'"):
        replay(FACE, [{"op": "Melt"}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jpg": [1, 2]}, "did you mean 'jpeg'"),
        ({"sigma": [5, 1]}, "low <= high"),
        ({"kernel_size": [40, 41]}, "odd"),
        ({"jpeg": [0, 120]}, "between 1 and 100"),
        ({"kernel_prob": [0.5, 0.6]}, "sum to 1"),
        ({"noise": "loud"}, "noise"),
    ],
)
def test_a_recipe_at_fault_names_file_and_field(tmp_path, change, message):
    import yaml

    stage = load("gfpgan").stages[0].model_dump(mode="json") | change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "mode": "sequential", "stages": [stage]}))
    with pytest.raises(RecipeError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_unknown_names_list_the_known_ones_and_comments_leave_the_digest():
    with pytest.raises(RecipeError, match="dual_sequential"):
        load("dual")
    plain = Recipe.model_validate(load("gfpgan").model_dump())
    assert plain.digest == load("gfpgan").digest
