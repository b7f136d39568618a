"""The operators in other people's Albumentations pipelines."""

import inspect
import json

import albumentations as A
import numpy as np
import pytest

from degradations import steps
from degradations import transforms as T


def every() -> list[T.Operator]:
    return [
        T.USM(radius=11),
        T.Blur(
            kernel_size=9,
            kernels={"iso": 0.3, "aniso": 0.3, "generalized_aniso": 0.2, "plateau_iso": 0.2},
            sigma=(1, 3),
        ),
        T.Sinc(kernel_size=(7, 11)),
        T.Shift(limit=4),
        T.Resize(factor=(0.5, 1.5), chances={"up": 0.3, "down": 0.4, "keep": 0.3}, modes=["area", "bicubic"]),
        T.Downsample(factor=(1, 2), p=0.5),
        T.GaussianNoise(sigma=(5, 10), grey=0.4),
        T.PoissonNoise(scale=(0.5, 1), grey=0.4),
        T.JPEG(quality=(40, 60)),
        T.ColourShift(limit=5),
        T.ColourJitter(p=0.5),
        T.Grey(p=0.2),
        T.Haze(),
        T.UnevenLight(strength=0.3),
    ]


def compose(seed: int | None = None, **options) -> A.Compose:
    return A.Compose(every(), seed=seed, **options)


def test_every_operator_is_a_transform():
    assert {type(t).__name__ for t in every()} == {step.__name__ for step in steps.OPERATORS}
    for transform in every():
        assert isinstance(transform, A.BasicTransform)
        assert set(inspect.signature(type(transform)).parameters) == set(type(transform.step).model_fields) - {"op"}


@pytest.mark.parametrize("transform", every(), ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_alone_keeps_the_type_and_leaves_the_input(transform, dtype, face):
    image = face if dtype == np.uint8 else (face / 255).astype(np.float32)
    before = image.copy()
    out = A.Compose([transform], seed=1)(image=image)["image"]
    assert out.dtype == dtype
    assert out.ndim == 3
    assert out.max() <= (255 if dtype == np.uint8 else 1)
    np.testing.assert_array_equal(image, before)


def test_a_seed_decides_everything(face):
    first = compose(3)(image=face)["image"]
    np.testing.assert_array_equal(compose(3)(image=face)["image"], first)
    assert not np.array_equal(compose(4)(image=face)["image"], first)


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_pipelines_are_saved_and_loaded(form, face, tmp_path):
    image = compose(3)(image=face)["image"]
    A.save(compose(), tmp_path / "pipeline", form)
    for loaded in (A.load(tmp_path / "pipeline", form), A.from_dict(json.loads(json.dumps(A.to_dict(compose()))))):
        assert [(t.step, t.p) for t in loaded] == [(t.step, t.p) for t in every()]
        loaded.set_random_seed(3)
        np.testing.assert_array_equal(loaded(image=face)["image"], image)
    assert "kernel_size=" in repr(compose())


def test_a_recorded_call_replays_from_json_on_this_and_on_another_picture(face):
    for _ in range(5):
        recorded = A.ReplayCompose(every())(image=face)
        record = json.loads(json.dumps(recorded["replay"]))
        again = A.ReplayCompose.replay(record, image=face)["image"]
        np.testing.assert_array_equal(again, recorded["image"])
        other = A.ReplayCompose.replay(record, image=face[::-1].copy())["image"]
        assert other.shape == again.shape


def test_pictures_beside_the_first_get_the_same_parameters(face):
    out = compose(3, additional_targets={"twin": "image"})(image=face, twin=face.copy())
    np.testing.assert_array_equal(out["twin"], out["image"])
    batch = compose(3)(images=np.stack([face, face]))["images"]
    np.testing.assert_array_equal(batch[0], batch[1])
    np.testing.assert_array_equal(batch[0], out["image"])


def targets(transform: A.BasicTransform, face: np.ndarray) -> dict:
    options = {"bbox_params": A.BboxParams("pascal_voc", ["labels"]), "keypoint_params": A.KeypointParams("xy")}
    mask = np.zeros((128, 128), np.uint8)
    mask[20:60, 10:50] = 1
    image = np.repeat(mask[..., None] * np.uint8(255), 3, 2)
    return A.Compose([transform, A.NoOp()], seed=2, **options)(
        image=image, mask=mask, bboxes=[(10, 20, 50, 60)], labels=["face"], keypoints=[(10, 20), (50, 60)]
    )


@pytest.mark.parametrize(
    "transform",
    [T.Downsample(factor=(1.5, 3)), T.Resize(factor=(0.5, 1.5)), T.Shift(limit=9)],
    ids=["down", "re", "shift"],
)
def test_what_moves_pixels_moves_masks_boxes_and_keypoints(transform, face):
    out = targets(transform, face)
    assert out["mask"].shape == out["image"].shape[:2]
    assert np.mean(out["mask"] != (out["image"][..., 0] > 127)) < 0.03
    rows, columns = np.nonzero(out["mask"])
    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert out["bboxes"][0] == pytest.approx(corners, abs=1)
    assert np.ravel(out["keypoints"]) == pytest.approx(corners, abs=1)
    assert corners != [10, 20, 50, 60]


@pytest.mark.parametrize("transform", every(), ids=lambda t: type(t).__name__)
def test_what_does_not_leaves_them_alone(transform, face):
    if not isinstance(transform, T.Moving):
        out = targets(transform, face)
        assert out["mask"].sum() == 40 * 40
        assert out["bboxes"][0] == pytest.approx([10, 20, 50, 60], abs=1e-4)
        assert np.ravel(out["keypoints"]).tolist() == [10, 20, 50, 60]


def test_a_parameter_at_fault_is_named(face):
    for call, message in [
        (lambda: T.JPEG(quality=(0, 50)), "a quality is between 1 and 100"),
        (lambda: T.JPEG(qualitty=50), "did you mean 'quality'"),
        (lambda: T.Blur(kernel_size=8), "odd"),
        (lambda: T.Haze(p=1.5), "less than or equal to 1"),
        (lambda: T.Grey()(image=face[..., 0]), "a picture is RGB"),
        (lambda: T.Grey()(image=face.astype(np.float64)), "not float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
