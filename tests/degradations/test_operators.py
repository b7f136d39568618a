"""Each operator against a plain transcription of its formula in float64: within one 8-bit step for uint8 pictures, and
within a twentieth of one for float32."""

import colorsys
import io
from statistics import NormalDist

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from scipy.special import jv

from degradations.operators import RUN, convolve
from degradations.operators.kernels import kernel, sinc

NORMAL = NormalDist()


def check(face: np.ndarray, op: str, expected, exact: bool = True, **parameters) -> None:
    """`expected` maps a float64 picture in [0, 255] to the same."""
    before = face.copy()
    out = RUN[op](face, **parameters)
    assert out.dtype == np.uint8
    assert np.abs(out - np.clip(expected(face.astype(float)), 0, 255)).max() <= 1.0
    np.testing.assert_array_equal(face, before)
    as_float = (face / 255).astype(np.float32)
    out = RUN[op](as_float, **parameters)
    assert out.dtype == np.float32
    assert out.min() >= 0
    assert out.max() <= 1
    if exact:
        assert np.abs(out * 255.0 - np.clip(expected(as_float * 255.0), 0, 255)).max() <= 0.05


def convolved(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    half, (height, width) = len(weights) // 2, image.shape[:2]
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), "reflect")
    taps = np.ndindex(weights.shape)
    return sum(weights[y, x] * padded[y : y + height, x : x + width] for y, x in taps)


def plain_kernel(kind, size, sigma_x, sigma_y, angle, beta) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    weights = np.zeros((size, size))
    for y, x in np.ndindex(size, size):
        at = np.array([x, y]) - size // 2
        q = at @ inverse @ at
        weights[y, x] = 1 / (q**beta + 1) if kind.startswith("plateau") else np.exp(-0.5 * q**beta)
    return weights / weights.sum()


BLURS = [
    ("iso", 41, 10.0, 10.0, 0.0, 1.0),
    ("iso", 13, 0.1, 0.1, 0.0, 1.0),
    ("iso", 7, 2.0, 2.0, 0.0, 1.0),
    ("aniso", 41, 9.0, 2.0, 0.7, 1.0),
    ("aniso", 21, 0.5, 2.5, -2.0, 1.0),
    ("aniso", 11, 3.0, 1.0, 3.0, 1.0),
    ("aniso", 41, 0.1, 0.1, 1.0, 1.0),
    ("generalized_iso", 15, 2.0, 2.0, 0.0, 0.5),
    ("generalized_aniso", 9, 1.5, 3.0, 0.3, 4.0),
    ("plateau_iso", 7, 0.8, 0.8, 0.0, 1.0),
    ("plateau_aniso", 21, 3.0, 0.4, -1.0, 2.0),
]


@pytest.mark.parametrize("drawn", BLURS)
def test_blur(face, drawn):
    kind, size, sigma_x, sigma_y, angle, beta = drawn
    weights = plain_kernel(*drawn)
    np.testing.assert_allclose(kernel(*drawn), weights, atol=1e-12)
    parameters = {"kind": kind, "kernel_size": size, "sigma_x": sigma_x, "sigma_y": sigma_y}
    check(face, "Blur", lambda image: convolved(image, weights), **parameters, angle=angle, beta=beta)


@pytest.mark.parametrize("drawn", [("aniso", 41, 9.0, 3.0, 0.7, 1.0), ("iso", 41, 6.0, 6.0, 0.0, 1.0)])
def test_blur_of_noisy_and_of_high_contrast_photographs(photographs, drawn):
    """Where a kernel of whole units errs most; the plain sum is taken at some pixels only, for its price."""
    kind, size, sigma_x, sigma_y, angle, beta = drawn
    weights, half = plain_kernel(*drawn), size // 2
    rng = np.random.default_rng(0)
    for image in photographs.values():
        noisy = np.clip(image + rng.normal(0, 30, image.shape), 0, 255).astype(np.uint8)
        hard = np.where(image > 100, 255, 0).astype(np.uint8)
        for picture in (image, noisy, hard):
            out = RUN["Blur"](picture, kind, size, sigma_x, sigma_y, angle, beta)
            for y, x in rng.integers(half, 512 - half, (400, 2)):
                window = picture[y - half : y + half + 1, x - half : x + half + 1]
                assert np.abs(out[y, x] - np.tensordot(weights, window, 2)).max() <= 1.0


@pytest.mark.parametrize(
    "made", [kernel("aniso", 41, 9.0, 3.0, 0.7), kernel("plateau_iso", 21, 2.0, 2.0), sinc(21, 0.95)]
)
def test_the_dft_gives_the_whole_numbers_that_plain_sums_give(photographs, made):
    """So its own rounding, whatever the processor, decides no pixel: not of photographs, nor of the hardest picture."""
    rng = np.random.default_rng(0)
    hardest = (rng.integers(0, 2, (512, 512, 3)) * 255).astype(np.uint8)
    weights = convolve._whole(made, convolve.COARSE)
    assert len(weights) > convolve.DIRECT
    for image in (*photographs.values(), hardest):
        units = np.rint(cv2.filter2D(image.astype(np.float64), -1, weights)).astype(int)
        expected = (units + convolve.COARSE // 2) // convolve.COARSE
        np.testing.assert_array_equal(convolve._by_dft(image, weights), np.clip(expected, 0, 255))


@pytest.mark.parametrize(("size", "cutoff"), [(7, 1.0), (11, 1 / 3), (13, 0.2), (21, 0.6)])
def test_sinc(face, size, cutoff):
    omega, weights = np.pi * cutoff, np.zeros((size, size))
    for y, x in np.ndindex(size, size):
        r = np.hypot(y - size // 2, x - size // 2)
        weights[y, x] = omega * jv(1, omega * r) / (2 * np.pi * r) if r else omega**2 / (4 * np.pi)
    weights /= weights.sum()
    np.testing.assert_allclose(sinc(size, cutoff), weights, atol=1e-12)
    assert weights.min() < 0  # it rings
    check(face, "Sinc", lambda image: convolved(image, weights), kernel_size=size, cutoff=cutoff)


def test_unsharp_masking(face):
    sigma = 0.3 * ((51 - 1) * 0.5 - 1) + 0.8
    weights = plain_kernel("iso", 51, sigma, sigma, 0.0, 1.0)

    def expected(image):
        residual = image - convolved(image, weights)
        mask = convolved((np.abs(residual) > 10).astype(float), weights)
        return mask * np.clip(image + 0.5 * residual, 0, 255) + (1 - mask) * image

    check(face, "USM", expected, weight=0.5, radius=51, threshold=10)


def sampled(image: np.ndarray, side: int, axis: int, weigh) -> np.ndarray:
    """One axis resampled: each new pixel the weighed sum of the old ones, the border repeated."""
    old = image.shape[axis]
    rows = []
    for i in range(side):
        pairs = weigh(i, old / side, old)
        rows.append(sum(w * image.take(min(max(j, 0), old - 1), axis) for j, w in pairs))
    return np.stack(rows, axis)


def linear(i, ratio, old):
    at = min(max((i + 0.5) * ratio - 0.5, 0), old - 1)
    low = int(at)
    return [(low, 1 - at + low), (low + 1, at - low)]


def cubic(i, ratio, old):
    at, a = (i + 0.5) * ratio - 0.5, -0.75
    low = int(np.floor(at))

    def weight(d):
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return near if d <= 1 else far

    return [(j, weight(abs(at - j))) for j in range(low - 1, low + 3)]


def area(i, ratio, old):
    if ratio < 1:  # OpenCV: linear, from pixels' corners
        low = int(np.floor(i * ratio))
        part = max((i + 1) - (low + 1) / ratio, 0)
        return [(low, 1 - part % 1), (low + 1, part % 1)]
    start, end = i * ratio, (i + 1) * ratio
    return [(j, max(min(j + 1, end) - max(j, start), 0) / ratio) for j in range(int(start), int(np.ceil(end)))]


@pytest.mark.parametrize(("mode", "weigh"), [("bilinear", linear), ("bicubic", cubic), ("area", area)])
@pytest.mark.parametrize(("height", "width"), [(64, 32), (47, 60), (190, 200), (128, 128)])
def test_resize(face, mode, weigh, height, width):
    def expected(image):
        return sampled(sampled(image, height, 0, weigh), width, 1, weigh)

    check(face, "Resize", expected, height=height, width=width, mode=mode)


@pytest.mark.parametrize(("factor", "side"), [(2.9, 44), (0.75, 170), (8, 16), (60, 4)])
def test_downsample(face, factor, side):
    def expected(image):
        return sampled(sampled(image, side, 0, linear), side, 1, linear)

    check(face, "Downsample", expected, factor=factor)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (5, -7), (-128, 3), (32, 32)])
def test_shift(face, dx, dy):
    def expected(image):
        wide = np.pad(image, ((128, 128), (128, 128), (0, 0)), "symmetric")
        return wide[128 - dy : 256 - dy, 128 - dx : 256 - dx]

    check(face, "Shift", expected, dx=dx, dy=dy)


def words(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    raw = np.random.Philox(key=seed).random_raw(int(np.prod(shape)) // 4 + 1)
    sixteens = [(int(word) >> part) % 2**16 for word in raw for part in (0, 16, 32, 48)]
    return np.array(sixteens[: int(np.prod(shape))]).reshape(shape)


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise(face, grey):
    face = face[40:72, 40:72]
    shape = (32, 32, 1) if grey else face.shape
    z = np.vectorize(lambda word: NORMAL.inv_cdf((word + 0.5) / 2**16))(words(7, shape))
    check(face, "GaussianNoise", lambda image: image + 17.3 * z, sigma=17.3, grey=grey, seed=7)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("levels", [256, 20])
def test_poisson_noise(face, grey, levels):
    """n levels in use; the photons counted are the quantile, of the Poisson distribution, of a word's first 12 bits."""
    face = np.ascontiguousarray(face[30:80, 30:80]) if levels == 256 else (face[40:90, 40:90] // 16 * 16)

    def expected(image):
        light = image @ [0.299, 0.587, 0.114] if grey else image
        light = np.rint(light)[..., None] if grey else np.rint(light)
        used = len(np.unique(light))
        n = 2 ** int(np.ceil(np.log2(used)))
        rate = n * light / 255
        share = (words(5, light.shape) // 16 + 0.5) / 2**12
        return image + 1.7 * 255 * (stats.poisson.ppf(share, rate) - rate) / n

    check(face, "PoissonNoise", expected, exact=False, scale=1.7, grey=grey, seed=5)


@pytest.mark.parametrize("level", [1, 10, 100, 200])
def test_poisson_noise_has_its_moments(level):
    image = np.full((400, 400, 3), level, np.uint8)
    image[:16, :16] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)  # so that all 256 levels are in use
    noisy = RUN["PoissonNoise"](image.astype(np.float32) / 255, scale=0.5, grey=False, seed=1)[16:] * 255.0
    rate = 256 * level / 255
    assert noisy.mean() == pytest.approx(level, abs=0.05)
    assert noisy.std() == pytest.approx(0.5 * 255 / 256 * rate**0.5, rel=0.1 if level == 1 else 0.02)


def test_gaussian_noise_is_independent_between_pixels_and_channels():
    flat = np.full((256, 256, 3), 128, np.uint8)
    noise = RUN["GaussianNoise"](flat, sigma=15.0, grey=False, seed=3).astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(15, rel=0.01)
    assert stats.kurtosis(noise.ravel()) == pytest.approx(0, abs=0.05)
    for other in (noise[..., 1], np.roll(noise[..., 0], 1, 0), np.roll(noise[..., 0], 1, 1)):
        assert np.corrcoef(noise[..., 0].ravel(), other.ravel())[0, 1] == pytest.approx(0, abs=0.02)
    grey = RUN["GaussianNoise"](flat, sigma=15.0, grey=True, seed=3)
    assert (grey == grey[..., :1]).all()
    assert not np.array_equal(RUN["GaussianNoise"](flat, sigma=15.0, grey=False, seed=4) - 128.0, noise)


@pytest.mark.parametrize("quality", [1, 30, 60, 95, 100])
def test_jpeg(face, quality):
    coded = io.BytesIO()
    Image.fromarray(face).save(coded, "JPEG", quality=quality)
    expected = np.asarray(Image.open(coded)).astype(float)
    check(face, "JPEG", lambda image: expected, quality=quality)


def test_colours_and_light(face):
    def light(image):
        y, x = np.mgrid[-1:1:128j, -1:1:128j]
        along = (x * np.cos(2.0) + y * np.sin(2.0)) / (abs(np.cos(2.0)) + abs(np.sin(2.0)))
        return image * (1 + 0.4 * along[..., None])

    shift = [3.6, -19.5, 12.2]
    check(face, "ColourShift", lambda image: image + shift, shift=shift)
    check(face, "Grey", lambda image: np.repeat((image @ [0.299, 0.587, 0.114])[..., None], 3, -1))
    check(face, "Haze", lambda image: 0.8 * image + 0.2 * 255, alpha=0.8)
    check(face, "UnevenLight", light, strength=0.4, angle=2.0)


@pytest.mark.parametrize(
    "changes",
    [
        [["brightness", 1.4]],
        [["contrast", 0.6]],
        [["saturation", 0.0]],
        [["hue", 0.08]],
        [["hue", -0.1], ["saturation", 1.5], ["brightness", 0.5], ["contrast", 1.5]],
        [["contrast", 1.3], ["brightness", 1.5], ["saturation", 0.4], ["hue", 0.1]],
    ],
)
def test_colour_jitter(face, changes):
    def turned(pixel, turn):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((h + turn) % 1, s, v)

    def expected(image):
        image = image / 255
        for name, value in changes:
            luma = (image @ [0.299, 0.587, 0.114])[..., None]
            if name == "hue":
                image = np.array([[turned(pixel, value) for pixel in row] for row in image])
            else:
                other = {"brightness": 0 * luma, "contrast": luma.mean(), "saturation": luma}[name]
                image = value * image + (1 - value) * other
            image = np.clip(image, 0, 1)
        return image * 255

    check(face[40:80, 40:80], "ColourJitter", expected, changes=changes)
