"""What a face is: an identity, and what changes from picture to picture of it; both drawn from seeds."""

import dataclasses
from typing import Any

import numpy as np

VERSION = "4"  # of the parameters and the drawing: part of every picture's provenance

Colour = tuple[float, float, float]  # sRGB in [0, 1]


@dataclasses.dataclass(frozen=True)
class Identity:
    """What stays from picture to picture of one person; lengths in half picture sides, amounts in [0, 1]."""

    seed: int
    age: float
    width: float
    height: float
    jaw: float
    chin: float
    cheekbones: float
    hollow: float
    eye_distance: float
    eye_size: float
    eye_height: float
    eye_tilt: float
    eye_depth: float
    crease: float
    iris: Colour
    brow_height: float
    brow_thickness: float
    brow_arch: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    nose_height: float
    nose_tip: float
    mouth_height: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    ear_size: float
    ear_angle: float
    skin: Colour
    redness: float
    freckles: float
    moles: tuple[tuple[float, float, float], ...]
    hair: Colour
    grey: float
    hair_style: str
    hair_length: float
    hair_volume: float
    hair_curl: float
    hairline: float
    hair_part: float
    beard_style: str
    beard: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """What changes: pose and gaze (radians), framing, expression, light, accessories, clothes, background."""

    seed: int
    yaw: float
    pitch: float
    roll: float
    zoom: float
    shift: tuple[float, float]
    smile: float
    mouth_open: float
    eyes_open: float
    brow_raise: float
    gaze: tuple[float, float]
    light: tuple[float, float]
    key: float
    hardness: float
    rim: float
    warmth: float
    exposure: float
    glasses: str
    frame: Colour
    clothes: str
    cloth: tuple[Colour, Colour]
    background: str
    colours: tuple[Colour, Colour]


@dataclasses.dataclass(frozen=True)
class Face:
    """One picture's parameters: whose face it is and how it is seen."""

    identity: Identity
    scene: Scene

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, as JSON has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Face":
        """What `to_json` gave, before or after a trip through JSON text."""
        return cls(Identity(**_tuples(data["identity"])), Scene(**_tuples(data["scene"])))


HAIR_STYLES = {"short": 0.24, "swept": 0.16, "fringe": 0.12, "bob": 0.13, "long": 0.17, "bun": 0.09, "bald": 0.06}
BEARDS = ("stubble", "moustache", "goatee", "full")
GLASSES = ("round", "oval", "square", "rimless")
CLOTHES = ("crew", "v-neck", "shirt", "turtleneck")
BACKGROUNDS = ("studio", "bokeh", "foliage", "room", "wall", "sky")

SKIN = (
    (0.29, 0.18, 0.13),
    (0.42, 0.27, 0.19),
    (0.58, 0.40, 0.29),
    (0.73, 0.53, 0.41),
    (0.83, 0.65, 0.53),
    (0.90, 0.74, 0.65),
)
HAIR = (
    (0.06, 0.05, 0.05),
    (0.13, 0.09, 0.07),
    (0.24, 0.15, 0.10),
    (0.36, 0.24, 0.15),
    (0.52, 0.38, 0.24),
    (0.68, 0.54, 0.36),
)
RED_HAIR = (0.46, 0.21, 0.10)
IRIS = ((0.20, 0.12, 0.07), (0.31, 0.19, 0.10), (0.42, 0.32, 0.16), (0.35, 0.42, 0.28), (0.40, 0.52, 0.62))


def rng(*words: int) -> np.random.Generator:
    """The counter-based generator of a purpose: the same words, the same numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def sample(seed: int, identity: int | None = None) -> Face:
    """The face of a seed (0 or more); pictures that share `identity` (the seed unless given) show one person."""
    return Face(_identity(seed if identity is None else identity), _scene(seed))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    def deep(value: Any) -> Any:
        return tuple(map(deep, value)) if isinstance(value, list | tuple) else value

    return {key: deep(value) for key, value in values.items()}


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (float(value) for value in np.clip(values, 0.02, 0.97))
    return red, green, blue


def _between(draw: np.random.Generator, palette: tuple[Colour, ...], at: float, spread: float) -> Colour:
    """The palette's colour at `at` in [0, 1], a little off."""
    place = at * (len(palette) - 1)
    mixed = [np.interp(place, range(len(palette)), channel) for channel in zip(*palette, strict=True)]
    return _colour(np.array(mixed) * draw.normal(1, spread) * draw.normal(1, spread / 2, 3))


def _muted(draw: np.random.Generator) -> Colour:
    """A colour as rooms and clothes have it: any brightness, mostly little saturation."""
    grey, saturation = draw.uniform(0.06, 0.85), draw.uniform(0.02, 0.7) ** 1.7
    return _colour(grey + saturation * (draw.uniform(0, 0.95, 3) - grey))


def _identity(seed: int) -> Identity:
    draw = rng(1, seed)
    u, n = draw.uniform, draw.normal
    robust, age, complexion = u(), u() ** 1.3, u()  # robust: heavy jaw and brows, thin lips, beard, short hair
    grey = float(np.clip((age - 0.72) * 3.2 + n(0, 0.2), 0, 1))
    shade = float(np.clip(complexion**1.4 * u(0, 1.25) - 0.1, 0, 1))  # dark skin goes with dark hair
    is_red = shade > 0.45 and u() < 0.15
    long_haired = np.isin(list(HAIR_STYLES), ["bob", "long", "bun", "fringe"])
    weights = np.array(list(HAIR_STYLES.values())) * np.where(long_haired, 1.9 - 1.8 * robust, 0.1 + 1.8 * robust)
    weights[-1] *= age  # bald
    bearded = robust > 0.5 and u() < 0.6
    return Identity(
        seed=seed, age=age, width=float(np.clip(n(0.545 + 0.02 * robust, 0.020), 0.50, 0.61)), height=u(0.86, 0.96),
        jaw=0.25 * u() + 0.75 * robust * u(0.4, 1), chin=0.79 + 0.10 * u() + 0.03 * robust, cheekbones=u(),
        hollow=u() ** 2, eye_distance=u(0.226, 0.262), eye_size=u(0.104, 0.124), eye_height=u(0.74, 1.12),
        eye_tilt=n(0.05, 0.06), eye_depth=u(0.35, 1) + 0.25 * robust, crease=u(),
        iris=_between(draw, IRIS, u() * complexion**0.8, 0.08), brow_height=u(0.125, 0.165) - 0.015 * robust,
        brow_thickness=u(0.012, 0.020) + 0.009 * robust, brow_arch=u(0.004, 0.030), brow_tilt=n(0.0, 0.022),
        nose_length=u(0.335, 0.405), nose_width=u(0.085, 0.135), nose_height=u(0.6, 1.15), nose_tip=u(0.6, 1.25),
        mouth_height=u(0.47, 0.52), mouth_width=u(0.175, 0.225), upper_lip=u(0.030, 0.056) - 0.010 * robust,
        lower_lip=u(0.046, 0.076) - 0.010 * robust, ear_size=u(0.85, 1.15), ear_angle=u(0.35, 0.8),
        skin=_between(draw, SKIN, complexion, 0.04), redness=u(), freckles=max(0.0, u(-2, 1)) * complexion,
        moles=tuple((u(-0.42, 0.42), u(-0.4, 0.75), u(0.006, 0.012)) for _ in range(int(draw.integers(0, 4)))),
        hair=_colour(np.array(RED_HAIR) * u(0.75, 1.3)) if is_red else _between(draw, HAIR, shade, 0.1), grey=grey,
        hair_style=str(draw.choice(list(HAIR_STYLES), p=weights / weights.sum())), hair_length=u(), hair_volume=u(),
        hair_curl=max(0.0, u(-0.9, 1)) if complexion > 0.25 else u(0.1, 1),
        hairline=-0.60 - 0.06 * u() - 0.14 * robust * max(0.0, age - 0.5) * u(), hair_part=u(-0.28, 0.28),
        beard_style=str(draw.choice(BEARDS)) if bearded else "none", beard=u(0.3, 1),
    )  # fmt: skip


def _scene(seed: int) -> Scene:
    draw = rng(2, seed)
    u, n = draw.uniform, draw.normal
    smile = float(np.clip(n(0.45, 0.4), -0.25, 1))
    return Scene(
        seed=seed, yaw=float(np.clip(n(0, 0.19), -0.42, 0.42)), pitch=float(np.clip(n(0.02, 0.08), -0.16, 0.18)),
        roll=float(np.clip(n(0, 0.03), -0.08, 0.08)), zoom=u(0.97, 1.04), shift=(n(0, 0.010), n(0, 0.010)), smile=smile,
        mouth_open=float(np.clip(u(-0.9, 0.55) + 0.55 * smile, 0, 1)), eyes_open=u(0.72, 1.08), brow_raise=u(-0.3, 1),
        gaze=(n(0, 0.16), n(0, 0.06)), light=(n(0, 0.75), u(0.0, 1.0)), key=u(0.35, 1), hardness=u() ** 1.5,
        rim=max(0.0, u(-1, 1)), warmth=n(0, 0.07), exposure=u(0.88, 1.15),
        glasses=str(draw.choice(GLASSES)) if u() < 0.17 else "none", frame=_muted(draw),
        clothes=str(draw.choice(CLOTHES)), cloth=(_muted(draw), _muted(draw)),
        background=str(draw.choice(BACKGROUNDS)), colours=(_muted(draw), _muted(draw)),
    )  # fmt: skip
