"""Any picture -> a square of the size asked for, or the reason why not; never more memory than the limits allow."""

import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from osdface import faces
from osdface.imagefile import ImageError
from pipelines import prepare as preparing
from pipelines.prepare import check, prepare, resize
from pipelines.sources import Source, files, read

HOSTILE = Path(__file__).parents[1] / "hostile.py"


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def made(image: np.ndarray, size: int, fit="crop", crop="none", landmarks="") -> np.ndarray:
    found = prepare(png(image), size, fit, crop, landmarks, 10**8)
    assert (found.shape, found.dtype) == ((size, size, 3), np.uint8)
    return found


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return faces.photographs()["astronaut"]


class TestFit:
    @pytest.mark.parametrize("fit", ["crop", "resize", "pad", "reject"])
    def test_a_square_of_the_size_stays_as_it_is(self, noise, fit):
        assert np.array_equal(made(noise[:, :48], 48, fit), noise[:, :48])

    def test_crop_keeps_the_middle(self, noise):
        assert np.array_equal(made(noise, 48), noise[:, 16:64])
        assert np.array_equal(made(noise.transpose(1, 0, 2), 48), noise[:, 16:64].transpose(1, 0, 2))

    def test_shrinking_goes_by_area_and_enlarging_is_bicubic(self, noise):
        square = noise[:, 16:64]
        means = square.reshape(24, 2, 24, 2, 3).mean((1, 3))
        assert np.abs(made(noise, 24) - means).max() <= 0.5
        assert np.array_equal(made(noise, 96), cv2.resize(square, (96, 96), interpolation=cv2.INTER_CUBIC))

    def test_resize_stretches_each_axis_its_own_way(self, noise):
        found = made(noise, 60, "resize")
        narrow = cv2.resize(noise, (60, 48), interpolation=cv2.INTER_AREA)
        assert np.array_equal(found, cv2.resize(narrow, (60, 60), interpolation=cv2.INTER_CUBIC))

    def test_pad_keeps_everything_and_reflects_the_borders(self, noise):
        found = made(noise, 80, "pad")
        assert np.array_equal(found[16:64], noise)
        assert np.array_equal(found[:16], noise[:16][::-1])
        assert np.array_equal(found[64:], noise[-16:][::-1])

    def test_pad_of_an_extreme_shape_stays_small(self):
        assert np.array_equal(made(np.full((16, 30_000, 3), 7, np.uint8), 32, "pad"), np.full((32, 32, 3), 7))

    def test_reject_takes_only_squares_that_are_large_enough(self, noise):
        with pytest.raises(ImageError, match="80x48 is not square") as caught:
            made(noise, 32, "reject")
        assert caught.value.fault == "not_square"
        with pytest.raises(ImageError, match="48x48 is smaller than 49x49") as caught:
            made(noise[:, :48], 49, "reject")
        assert caught.value.fault == "too_small"
        assert made(noise[:, :48], 47, "reject").shape == (47, 47, 3)

    @pytest.mark.parametrize("fit", ["crop", "resize", "pad"])
    def test_fifteen_rows_are_too_few_for_any_rule(self, noise, fit):
        with pytest.raises(ImageError, match="80x15 pixels are too few") as caught:
            made(noise[:15], 16, fit)
        assert caught.value.fault == "too_small"

    def test_the_header_alone_tells(self, noise):
        header = png(noise)[:60]
        with pytest.raises(ImageError, match="80x48 is not square"):
            check(header, 32, "reject", "none", "", 10**8)
        with pytest.raises(ImageError, match="more than 100 pixels"):
            check(header, 32, "crop", "none", "", 100)
        assert check(header, 32, "crop", "none", "", 10**8) is None

    def test_resize_to_itself_copies_nothing(self, noise):
        assert resize(noise, 80, 48) is noise


class TestFace:
    def test_the_largest_face_comes_out_aligned(self, astronaut):
        small = cv2.resize(astronaut[:300, 100:400], (150, 150), interpolation=cv2.INTER_AREA)
        both = np.full((512, 700, 3), 128, np.uint8)
        both[:, :512], both[300:450, 530:680] = astronaut, small
        assert len(faces.DlibFrontal().detect(both)) == 2
        found = made(both, 256, crop="face")
        assert faces.is_aligned(found)
        assert np.abs(found.astype(int) - made(astronaut, 256, crop="face")).mean() < 2

    def test_fit_does_not_matter_to_a_face(self, astronaut):
        wide = np.pad(astronaut, ((0, 0), (0, 100), (0, 0)))
        assert np.array_equal(made(wide, 64, "reject", "face"), made(wide, 64, "pad", "face"))

    def test_a_large_photograph_gives_the_same_face(self, astronaut):
        large = cv2.resize(astronaut, (3000, 3000), interpolation=cv2.INTER_CUBIC)
        found = made(large, 128, crop="face")
        assert faces.is_aligned(found)
        assert np.abs(found.astype(int) - made(astronaut, 128, crop="face")).mean() < 6

    @pytest.mark.parametrize(("size", "given"), [(1024, 2048), (256, 1024), (64, 256)])
    def test_a_large_photograph_is_looked_at_and_cut_small(self, monkeypatch, size, given):
        """A face is put into the middle of 2048 px: its square is the middle 1024, whatever it was shrunk for."""
        seen = []

        class Middle:
            def detect(self, image):
                seen.append(image.shape)
                return [faces.Face((0, 0, 1, 1), 1.0, faces.TEMPLATE * 512 + 255.5)]

        def align(image, face, size):
            seen.append(image.shape)
            return faces.align(image, face, size)

        monkeypatch.setattr(preparing, "DlibFrontal", Middle)
        monkeypatch.setattr(preparing, "align", align)
        image = cv2.resize(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (2048, 2048))
        found = made(image, size, crop="face")
        step = 1024 // size
        means = image[512:1536, 512:1536].reshape(size, step, size, step, 3).mean((1, 3))
        assert np.abs(found - means).max() <= 1.5
        assert seen == [(1024, 1024, 3), (given, given, 3)]

    def test_no_face(self, noise):
        with pytest.raises(ImageError, match="no face was found") as caught:
            made(noise, 32, crop="face")
        assert caught.value.fault == "no_face"


def points(left, right, mouth_left, mouth_right) -> np.ndarray:
    """68 points of which those that matter have these means."""
    found = np.zeros((68, 2))
    found[36:42], found[42:48], found[48], found[54] = left, right, mouth_left, mouth_right
    return found


class TestLandmarks:
    """Against the square worked out by hand: eyes 40 apart and a mouth 30 below give a half side of 80."""

    @pytest.fixture(scope="class")
    def canvas(self) -> np.ndarray:
        y, x = np.mgrid[0:400, 0:400]
        waves = np.stack([np.sin(x / 9), np.cos(y / 11), np.sin((x + y) / 13)], -1)
        return (waves * 100 + 128).astype(np.uint8)

    @staticmethod
    def by_pillow(canvas: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
        """Corners from the upper left one, against the clock, in centres of pixels: FFHQ's own call."""
        quad = tuple((corners + 0.5).ravel())
        image = Image.fromarray(canvas).transform((size, size), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
        return np.asarray(image).astype(int)

    @pytest.mark.parametrize("degrees", [0, 25, 90, -140])
    @pytest.mark.parametrize(
        ("face", "centre", "half", "along"),
        [
            (points((180, 180), (220, 180), (185, 210), (215, 210)), (200, 183), 80, (1, 0)),
            (points((190, 150), (210, 150), (195, 210), (205, 210)), (200, 156), 108, (1, 0)),  # long: 1.8 times 60
            (points((180, 180), (220, 180), (195, 210), (225, 210)), (201, 183), 80, (40 + 30, -10)),  # a mouth aside
        ],
    )
    def test_the_square_stands_on_eyes_and_mouth(self, canvas, face, centre, half, along, degrees):
        turn, lean = np.deg2rad(degrees), np.array([along, (-along[1], along[0])]) / np.hypot(*along)
        turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        corners = np.array([[-half, -half], [-half, half], [half, half], [half, -half]]) @ lean @ turned + centre
        face = (face - centre) @ turned + centre
        found = made(canvas, 2 * half, landmarks=json.dumps(face.tolist()))
        assert np.abs(found - self.by_pillow(canvas, corners, 2 * half)).max() <= 3

    def test_beyond_the_border_it_is_reflected(self, canvas):
        face = points((10, 180), (50, 180), (15, 210), (45, 210))  # the square's left edge lies at -50
        found = made(canvas, 160, landmarks=json.dumps(face.tolist()))
        assert np.abs(found[:, 10:49].astype(int) - found[:, 51:90][:, ::-1]).mean() < 12
        assert found[:, :49].std() > 20

    @pytest.mark.parametrize(
        "face",
        [
            np.zeros((67, 2)),
            np.zeros((68, 2)),
            np.full((68, 2), np.inf),
            points((1e9, 1e9), (2e9, 1e9), (1e9, 2e9), (2e9, 2e9)),
            points((0, 0), (9e5, 0), (0, -9e5), (9e5, -9e5)),
        ],
    )
    def test_points_of_no_face(self, canvas, face):
        with pytest.raises(ImageError, match="its landmarks are") as caught:
            made(canvas, 64, landmarks=json.dumps(face.tolist()))
        assert caught.value.fault == "no_face"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("hostile") / "files"
    return folder, runpy.run_path(str(HOSTILE))["write_hostile"](folder)


def outcomes(folder: Path, limit: int = 4_000_000) -> dict[str, str]:
    """Of every file below a folder: "convert", or why it is a reject."""
    found = {}
    for row in files(Source(uri=str(folder)), 0):
        found[row["source_uri"]] = row["reason"] or "convert"
        if not row["reason"]:
            try:
                prepare(read(row["at"], 10**8), 32, "crop", "none", "", limit)
            except ImageError as error:
                found[row["source_uri"]] = error.reason
    return found


def test_hostile_files_are_converted_or_refused_with_a_reason(hostile):
    folder, expected = hostile
    found = outcomes(folder)
    assert len(expected) > 100
    assert set(found) == set(expected)
    wrong = {name: why for name, why in found.items() if (why == "convert") != (expected[name] == "convert")}
    assert wrong == {}


def test_hostile_files_do_not_fill_the_memory(hostile):
    """Under the limit of 4 million pixels: 12 MB a picture, and the decoders' copies."""
    code = f"""
import resource, runpy, sys
test = runpy.run_path({__file__!r})
test["outcomes"](test["Path"](sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
test["outcomes"](test["Path"](sys.argv[1]))
print("grown by", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MB")
"""
    folder = hostile[0]
    done = subprocess.run(
        [sys.executable, "-c", code, folder, folder / "folder.png"], capture_output=True, text=True, check=True
    )
    assert int(re.search(r"grown by (\d+) MB", done.stdout)[1]) < 60
