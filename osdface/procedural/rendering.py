"""The picture: all layers in their order, then the camera."""

import cv2

from osdface.procedural import features, hair, skin, surroundings
from osdface.procedural.facial_hair import beard, brows, lashes
from osdface.procedural.field import Array, blur, f32, linear, picture_axes, rgb, step
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light, develop
from osdface.procedural.parameters import Face
from osdface.procedural.strands import Layer, dark

LENS = 0.45  # pixels of its blur; with the pixel's own square it is half a pixel, the usual filter of renderers


def render(face: Face, size: int) -> Array:
    """Draw a face: (size, size, 3) uint8 RGB, size from 32 up. A pure function; a face looks the same at every size."""
    side = min(2 * size, size + 128)  # drawn larger and averaged, the more so the coarser the pixels
    seen = cv2.GaussianBlur(_photograph(face, side), (0, 0), LENS * side / size)
    return cv2.resize(seen, (size, size), interpolation=cv2.INTER_AREA)


def _photograph(face: Face, side: int) -> Array:
    light = Light.of(face.scene)
    head = Head(face, side, light.key)
    back, front = hair.scalp_hair(head, light)
    seen = _before_head(front, head)
    canvas = surroundings.background(face.scene, side)
    colour = hair.hair_colour(face.identity)
    back.over(canvas, 0.8 * colour, light)
    skin.neck(canvas, head, light)
    surroundings.clothes(canvas, head, light)
    skin.ears(canvas, head, light)
    skin.head_skin(canvas, head, light, _shadow(front.whole(seen, side), light, side))
    features.nostrils(canvas, head)
    features.mouth(canvas, head, light)
    features.eyes(canvas, head, light)
    facial, grey = dark(face.identity.hair, face.identity.skin), 0.7 * face.identity.grey
    brows(head).over(canvas, facial, light)
    beard(head, light).over(canvas, (1 - grey) * facial + 0.8 * grey * colour, light)
    lashes(head).over(canvas, 0.3 * facial, light)
    surroundings.glasses(canvas, head, light)
    front.over(canvas, colour, light, seen)
    return _camera(canvas, head)


def _before_head(layer: Layer, head: Head) -> Array:
    """How much of a layer is seen: all beside the head, and before it what is nearer."""
    nearer = step(layer.depth - head.depth[layer.at], -0.10, 0.04)
    return layer.alpha * (1 - head.inside[layer.at] * (1 - nearer))


def _shadow(alpha: Array, light: Light, side: int) -> Array:
    """What hair keeps from the skin beside and below it."""
    moved = f32([[1, 0, -0.03 * light.key[0] * side], [0, 1, (0.012 - 0.03 * light.key[1]) * side]])
    return 0.8 * blur(cv2.warpAffine(alpha, moved, (side, side)), 0.03, side)


def _camera(canvas: Array, head: Head) -> Array:
    """Exposure metered on the face, part of the way, white balance left to the light; darker corners; sRGB."""
    scene, (x, y) = head.face.scene, picture_axes(head.side)
    weight = head.inside[::4, ::4]
    metered = float((canvas[::4, ::4].mean(-1) * weight).sum() / max(weight.sum(), 1.0))
    own = float(linear(head.face.identity.skin).mean())
    gain = scene.exposure * (0.20 + 0.38 * own) / max(metered, 0.02)
    return develop(canvas * rgb(gain * (1 - 0.10 * (x * x + y * y))))
