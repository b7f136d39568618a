"""Detection, alignment and pasting, on the two real photographs."""

import numpy as np
import pytest

from osdface import faces
from osdface.errors import MissingWeights, UserError
from osdface.faces import DlibFrontal, Face, align, is_aligned, paste_into, similarity, whole


def paste(image: np.ndarray, crop: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The photograph with the crop in it, as a copy."""
    pasted = image.copy()
    paste_into(pasted, crop, matrix)
    return pasted


@pytest.fixture(scope="module")
def photographs():
    return faces.photographs()


@pytest.fixture(scope="module")
def found(photographs):
    return {name: DlibFrontal().detect(image) for name, image in photographs.items()}


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def inside(image, matrix, size):
    """Which pixels of a photograph lie within the crop."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    u, v = np.moveaxis(apply(matrix, np.stack([x, y], -1).reshape(-1, 2).astype(float)), -1, 0)
    within = (u > -0.5) & (u < size - 0.5) & (v > -0.5) & (v < size - 0.5)
    return within.reshape(image.shape[:2])


def test_six_faces_and_one_left_to_right(found):
    assert (len(found["t1"]), len(found["astronaut"])) == (6, 1)
    assert [face.box[0] for face in found["t1"]] == sorted(face.box[0] for face in found["t1"])


def test_landmarks_are_left_eye_right_eye_nose(found):
    for face in found["t1"] + found["astronaut"]:
        left, right, nose = face.landmarks
        assert left[0] < right[0]
        assert nose[1] > max(left[1], right[1])
        assert face.box[0] < nose[0] < face.box[2]


def test_similarity_is_exact_on_a_similarity_and_least_squares_otherwise():
    rng = np.random.default_rng(0)
    points, wanted = rng.normal(size=(5, 2)), np.array([[1.2, -0.7, 3], [0.7, 1.2, -2]])
    np.testing.assert_allclose(similarity(points, apply(wanted, points)), wanted, atol=1e-12)
    target = rng.normal(size=(5, 2))
    best = similarity(points, target)
    for turn in (0.99, 1.01):
        worse = best * [[turn, turn, 1]]
        assert ((apply(worse, points) - target) ** 2).sum() > ((apply(best, points) - target) ** 2).sum()


@pytest.mark.parametrize("size", [64, 256])
def test_aligned_faces_have_their_landmarks_at_the_template(photographs, found, size):
    for name, image in photographs.items():
        for face in found[name]:
            crop, matrix = align(image, face, size)
            assert crop.shape == (size, size, 3)
            assert crop.dtype == np.uint8
            assert np.abs((apply(matrix, face.landmarks) + 0.5) / size - faces.TEMPLATE).max() < 0.06
            assert is_aligned(crop)


def test_an_ordinary_photograph_is_not_aligned(photographs):
    assert not is_aligned(photographs["astronaut"])
    assert not is_aligned(photographs["t1"])
    assert not is_aligned(np.full((64, 64, 3), 127, np.uint8))


def test_shrinking_goes_by_area():
    """A fine chequer has no right to appear in a crop eight times coarser: it becomes grey."""
    chequer = np.repeat((np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    face = Face((0, 0, 512, 512), 1.0, faces.TEMPLATE * 512 - 0.5)
    assert np.abs(align(chequer, face, 64)[0].astype(int) - 128).max() <= 4


def test_crops_of_two_sizes_show_the_same(photographs, found):
    image, face = photographs["astronaut"], found["astronaut"][0]
    small, large = (align(image, face, size)[0].astype(float) for size in (64, 256))
    shrunk = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - shrunk).mean() < 1


@pytest.mark.parametrize("size", [64, 128, 512])
def test_pasting_a_crop_back_changes_its_inside_little_and_its_outside_not_at_all(photographs, found, size):
    for name, faces_of in (("t1", found["t1"][::3]), ("astronaut", found["astronaut"])):
        image = photographs[name]
        for face in faces_of:
            before = image.copy()
            crop, matrix = align(image, face, size)
            pasted = paste(image, crop, matrix)
            np.testing.assert_array_equal(image, before)
            within = inside(image, matrix, size)
            np.testing.assert_array_equal(pasted[~within], image[~within])
            difference = np.abs(pasted[within].astype(int) - image[within])
            assert difference.mean() < (7 if size == 64 else 3)  # a 64 px crop is coarser than the face itself


def test_a_pasted_face_has_no_seam(photographs, found):
    """A crop made brighter by 40 fades in: neighbouring pixels of the change differ by a few levels at most."""
    image = (photographs["astronaut"] * 0.6 + 30).astype(np.uint8)  # far from 0 and 255, where values clip
    crop, matrix = align(image, found["astronaut"][0], 256)
    plain, brighter = (paste(image, values, matrix).astype(int) for values in (crop, crop + np.uint8(40)))
    change = brighter - plain
    assert change.max() == 40
    assert max(np.abs(np.diff(change, axis=axis)).max() for axis in (0, 1)) <= 5


def test_a_face_cut_by_the_border_is_aligned_and_pasted(photographs, found):
    left, top, right, _ = found["astronaut"][0].box
    image = np.ascontiguousarray(photographs["astronaut"][top + 5 :, left + 5 :])
    landmarks = found["astronaut"][0].landmarks - (left + 5, top + 5)
    face = Face((-5, -5, right - left - 5, right - left - 5), 1.0, landmarks)
    crop, matrix = align(image, face, 128)
    assert (apply(matrix, np.zeros((1, 2))) > 10).all()  # the crop does reach over the border
    assert crop[:5, :5].any()
    pasted = paste(image, 255 - crop, matrix)
    within = inside(image, matrix, 128)
    assert (pasted[0, 0] != image[0, 0]).any()  # no fading towards a border of the photograph
    np.testing.assert_array_equal(pasted[~within], image[~within])


@pytest.mark.parametrize("apart", [0, 6, -6])
def test_a_face_in_profile_stands_upright_at_its_size(photographs, apart):
    """Both eyes nearly in one place, a third as far from the nose's base as it is deep, to either side."""
    image = photographs["t1"]
    landmarks = np.array([[640.0, 400.0], [640 + apart, 400], [665 if apart >= 0 else 615, 460]])
    crop, matrix = align(image, Face((580, 360, 700, 500), 1.0, landmarks), 128)
    assert crop.shape == (128, 128, 3)
    turned = np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
    assert abs(turned) < 45
    assert 0.2 < np.hypot(*matrix[:, 0]) < 1
    pasted = paste(image, np.full_like(crop, 255), matrix)
    assert 0 < (pasted != image).any(-1).mean() < 0.25


def test_a_crop_far_from_the_photograph_changes_nothing(photographs):
    image = photographs["astronaut"]
    crop = np.zeros((64, 64, 3), np.uint8)
    np.testing.assert_array_equal(paste(image, crop, np.array([[1.0, 0, 5000], [0, 1, 0]])), image)


@pytest.mark.parametrize("shape", [(128, 128), (100, 60)])
def test_a_whole_picture_is_replaced_to_its_border(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([x, y, x + y], -1).astype(np.uint8)
    face, crop, matrix = whole(image, 128)
    assert face.box == (0, 0, shape[1], shape[0])
    assert crop.shape == (128, 128, 3)
    assert np.abs(paste(image, crop, matrix).astype(int) - image).max() <= 2
    assert (paste(image, np.full_like(crop, 255), matrix) == 255).all()


def test_the_detector_never_looks_at_more_than_its_bound(monkeypatch):
    seen = []

    class Recording:
        def run(self, image, *_):
            seen.append(image.shape)
            return [], [], []

    monkeypatch.setattr(faces, "_dlib", lambda thread: (Recording(), None))
    assert DlibFrontal().detect(np.broadcast_to(np.uint8(0), (1000, 3999, 3))) == []
    assert seen == [(1000, 3999, 3)]  # below the bound: as it is
    assert DlibFrontal().detect(np.broadcast_to(np.uint8(0), (9000, 11000, 3))) == []
    assert seen[1][1] / seen[1][0] == pytest.approx(11 / 9, rel=0.01)
    assert len(seen) == 2 + 3 * 4  # then in tiles
    assert all(height * width <= faces.SEARCHED for height, width, _ in seen)


@pytest.mark.parametrize("sides", [(9000, 11000), (300, 60_000), (4000, 4001)])
def test_tiles_cover_a_picture_and_whatever_is_smaller_than_their_overlap(sides):
    covered = np.zeros(sides, np.uint8)
    overlap = faces.FINE * faces.OVERLAP
    corners = []
    for left, top, tile in faces.tiles(covered, faces.SEARCHED):
        tile[:] = 1
        corners.append((left, top, left + tile.shape[1], top + tile.shape[0]))
    assert covered.all()
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left = (int(rng.integers(0, max(1, side - overlap))) for side in sides)
        right, bottom = min(left + overlap, sides[1]), min(top + overlap, sides[0])
        assert any(a <= left and b <= top and right <= c and bottom <= d for a, b, c, d in corners)


def test_small_faces_of_a_panorama_are_found_once_each(photographs, found):
    """Twice the same people in a picture that, shrunk, has them at 29 pixels."""
    t1 = photographs["t1"]
    panorama = np.full((t1.shape[0], 8000, 3), 128, np.uint8)
    places = (300, 6000)
    for left in places:
        panorama[:, left : left + t1.shape[1]] = t1
    seen = DlibFrontal(pixels=500_000).detect(panorama)
    for left in places:
        for face in (face for face in found["t1"] if face.box[2] - face.box[0] > 100):
            same = [one for one in seen if np.abs(one.landmarks - face.landmarks - [left, 0]).max() < 8]
            assert len(same) == 1


def test_missing_landmarks_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(faces.weights, "places", lambda name: iter([tmp_path / "none"]))
    faces._dlib.cache_clear()
    with pytest.raises(MissingWeights, match="shape_predictor_5_face_landmarks"):
        DlibFrontal().detect(np.zeros((64, 64, 3), np.uint8))


def test_a_photograph_whose_package_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(faces.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="insightface"):
        faces.photographs()
