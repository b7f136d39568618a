"""Thousands of draws of every operator's parameters fill the documented ranges, with the documented means."""

import numpy as np
import pytest

from degradations import steps
from degradations.chain import Patch
from degradations.steps import (
    JPEG,
    OPERATORS,
    USM,
    Blur,
    ColourJitter,
    ColourShift,
    Downsample,
    GaussianNoise,
    Haze,
    PoissonNoise,
    Resize,
    Shift,
    Sinc,
    UnevenLight,
)  # fmt: skip

DRAWS = 4000
SIZE = (512, 400, 3)


def draw(step, draws: int = DRAWS) -> list[dict]:
    rng = np.random.default_rng(1)
    return [step.draw(rng, SIZE, (512, 512, 3)) for _ in range(draws)]


RANGES = [
    (Blur(sigma=(0.1, 10)), "sigma_x", 0.1, 10),
    (Blur(kernels={"aniso": 1}, sigma=(0.1, 10)), "sigma_y", 0.1, 10),
    (Blur(kernels={"aniso": 1}), "angle", -np.pi, np.pi),
    (Blur(kernel_size=(7, 21)), "kernel_size", 7, 21),
    (Sinc(kernel_size=(7, 21)), "kernel_size", 7, 21),
    (Sinc(cutoff=(0.2, 1)), "cutoff", 0.2, 1),
    (Downsample(factor=(0.8, 8)), "factor", 0.8, 8),
    (Resize(factor=(0.5, 1.5)), "height", 256, 768),
    (Resize(factor=(0.5, 1.5)), "width", 200, 600),
    (Resize(base=0.25, factor=(0.5, 1)), "width", 64, 128),
    (Shift(limit=32), "dx", -32, 32),
    (Shift(limit=32), "dy", -32, 32),
    (GaussianNoise(sigma=(1, 30)), "sigma", 1, 30),
    (PoissonNoise(scale=(0.05, 3)), "scale", 0.05, 3),
    (GaussianNoise(), "seed", 0, 2**53),
    (PoissonNoise(), "seed", 0, 2**53),
    (JPEG(quality=(30, 95)), "quality", 30, 95),
    (Haze(alpha=(0.75, 0.95)), "alpha", 0.75, 0.95),
    (UnevenLight(strength=(0.1, 0.5)), "strength", 0.1, 0.5),
    (UnevenLight(), "angle", -np.pi, np.pi),
    (Patch(size=(128, 256), steps=[]), "size", 128, 256),
    (Patch(size=(128, 128), steps=[]), "top", 0, 384),
    (Patch(size=(128, 128), steps=[]), "left", 0, 272),
]


@pytest.mark.parametrize(("step", "name", "low", "high"), RANGES, ids=lambda value: getattr(value, "op", None))
def test_a_number_fills_its_range_evenly(step, name, low, high):
    drawn = np.array([parameters[name] for parameters in draw(step)], float)
    span = high - low
    assert low <= drawn.min() <= low + 0.02 * span
    assert high - 0.02 * span <= drawn.max() <= high
    assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.03 * span)
    assert drawn.std() == pytest.approx(span / 12**0.5, rel=0.15)


def test_kernels_come_by_their_shares_and_iso_ones_are_round():
    shares = {
        "iso": 0.45, "aniso": 0.25, "generalized_iso": 0.12, "generalized_aniso": 0.03, "plateau_iso": 0.12,
        "plateau_aniso": 0.03,
    }  # fmt: skip
    drawn = draw(Blur(kernel_size=(7, 21), kernels=shares))
    for kind, share in shares.items():
        of_kind = [parameters for parameters in drawn if parameters["kind"] == kind]
        assert len(of_kind) / DRAWS == pytest.approx(share, abs=0.03)
        for parameters in of_kind:
            is_round = parameters["sigma_x"] == parameters["sigma_y"] and parameters["angle"] == 0
            assert is_round == ("aniso" not in kind)
    assert {parameters["kernel_size"] for parameters in drawn} == set(range(7, 22, 2))


@pytest.mark.parametrize(("kind", "low", "high"), [("generalized_iso", 0.5, 4), ("plateau_aniso", 1, 2)])
def test_half_of_the_betas_are_below_one_and_half_above(kind, low, high):
    drawn = np.array([parameters["beta"] for parameters in draw(Blur(kernels={kind: 1}))])
    assert drawn.min() == pytest.approx(low, abs=0.01)
    assert drawn.max() == pytest.approx(high, abs=0.02)
    assert (drawn <= 1).mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.mean() == pytest.approx(0.5 * (low + 1) / 2 + 0.5 * (1 + high) / 2, abs=0.06)


def test_resize_goes_up_down_or_stays_by_its_chances_and_its_modes_are_equally_likely():
    chances = {"up": 0.2, "down": 0.7, "keep": 0.1}
    modes = ["area", "bilinear", "bicubic"]
    drawn = draw(Resize(base=1, factor=(0.15, 1.5), chances=chances, modes=modes))
    heights = np.array([parameters["height"] for parameters in drawn])
    for share, of_kind, low, high in [
        (0.2, heights[heights > 512], 512, 768), (0.7, heights[heights < 512], 76, 512),
        (0.1, heights[heights == 512], 512, 512),
    ]:  # fmt: skip
        assert len(of_kind) / DRAWS == pytest.approx(share, abs=0.03)
        assert of_kind.mean() == pytest.approx((low + high) / 2, abs=8)
        assert low <= of_kind.min() <= of_kind.max() <= high
    for mode in modes:
        assert np.mean([parameters["mode"] == mode for parameters in drawn]) == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("step", [GaussianNoise(grey=0.4), PoissonNoise(grey=0.4)])
def test_noise_is_grey_by_its_chance(step):
    assert np.mean([parameters["grey"] for parameters in draw(step)]) == pytest.approx(0.4, abs=0.03)


def test_colour_changes_fill_their_ranges_in_every_order():
    shifts = np.array([parameters["shift"] for parameters in draw(ColourShift(limit=20))])
    assert shifts.shape == (DRAWS, 3)
    assert np.abs(shifts).max() == pytest.approx(20, abs=0.1)
    assert shifts.mean(0) == pytest.approx([0, 0, 0], abs=0.8)
    drawn = [parameters["changes"] for parameters in draw(ColourJitter())]
    assert len({tuple(name for name, _ in changes) for changes in drawn}) == 24
    for name, (low, high) in {
        "brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0, 1.5), "hue": (-0.1, 0.1),
    }.items():  # fmt: skip
        values = np.array([dict(changes)[name] for changes in drawn])
        assert low <= values.min() <= values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
        assert np.ptp(values) > 0.98 * (high - low)


def test_what_draws_nothing_says_what_it_was_given():
    assert draw(USM(weight=0.4, radius=51, threshold=8), 1) == [{"weight": 0.4, "radius": 51, "threshold": 8}]
    assert draw(steps.Grey(), 1) == [{}]


def test_every_operator_is_drawn_here():
    tested = {step.op for step, *_ in RANGES} | {"ColourShift", "ColourJitter", "USM", "Grey"}
    assert tested - {"Patch"} == {step.__name__ for step in OPERATORS}


@pytest.mark.parametrize("scale", [0.25, 1, 2])
def test_lengths_scale_and_nothing_else_does(scale):
    kernel = {0.25: (3, 5), 1: (7, 21), 2: (15, 43)}[scale]
    assert Blur(kernel_size=(7, 21), sigma=(1, 3)).at(scale) == Blur(kernel_size=kernel, sigma=(scale, 3 * scale))
    sinc = Sinc(kernel_size=(7, 21), cutoff=(0.2, 1)).at(scale)
    assert (sinc.kernel_size, sinc.cutoff) == (kernel, (min(0.2 / scale, 1), min(1 / scale, 1)))
    assert Shift(limit=32).at(scale) == Shift(limit=32 * scale)
    assert USM(radius=51).at(scale).radius == {0.25: 13, 1: 51, 2: 103}[scale]
    assert Patch(size=(128, 256), steps=[]).at(scale).size == (128 * scale, 256 * scale)
    for still in (Downsample(), Resize(), GaussianNoise(), PoissonNoise(), JPEG(), ColourShift(), ColourJitter()):
        assert still.at(scale) == still
