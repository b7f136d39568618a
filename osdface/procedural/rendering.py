"""The picture: all layers in their order, then the camera."""

import cv2
import numpy as np

from osdface.procedural import features, hair, skin, surroundings
from osdface.procedural.field import Array, blur, linear, picture_axes, step
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light, develop
from osdface.procedural.parameters import Face
from osdface.procedural.strands import Layer, dark


def render(face: Face, size: int) -> Array:
    """Draw a face: (size, size, 3) uint8 RGB. A pure function; the same face looks the same at every size."""
    side = {True: 2 * size, False: max(size, min(2 * size, 768))}[size <= 256]
    picture = _photograph(face, side)
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA) if side > size else picture


def _photograph(face: Face, side: int) -> Array:
    light = Light.of(face.scene)
    head = Head(face, side, light.key)
    back, front = hair.scalp_hair(head, light)
    seen = _before_head(front, head)
    canvas = surroundings.background(face.scene, side)
    tint = hair.hair_colour(face.identity)
    back.over(canvas, 0.8 * tint, light)
    canvas = skin.neck(canvas, head, light)
    canvas = surroundings.clothes(canvas, head, light)
    canvas = skin.ears(canvas, head, light)
    canvas = skin.head_skin(canvas, head, light, _shadow(front.whole(seen, side), light, side))
    canvas = features.nostrils(canvas, head)
    canvas = features.mouth(canvas, head, light)
    canvas = features.eyes(canvas, head, light)
    facial = dark(face.identity.hair, face.identity.skin)
    for layer in (hair.brows(head, light), hair.beard(head, light)):
        layer.over(canvas, facial, light)
    hair.lashes(head, light).over(canvas, 0.3 * facial, light)
    canvas = surroundings.glasses(canvas, head, light)
    front.over(canvas, tint, light, seen)
    return _camera(canvas, head)


def _before_head(layer: Layer, head: Head) -> Array:
    """How much of a layer is seen: all beside the head, and before it what is nearer."""
    nearer = step(layer.depth - head.depth[layer.at], -0.10, 0.04)
    return layer.alpha * (1 - head.inside[layer.at] * (1 - nearer))


def _shadow(alpha: Array, light: Light, side: int) -> Array:
    """What hair keeps from the skin beside and below it."""
    moved = np.float32([[1, 0, -0.03 * light.key[0] * side], [0, 1, (0.012 - 0.03 * light.key[1]) * side]])
    return 0.8 * blur(cv2.warpAffine(alpha.astype(np.float32), moved, (side, side)), 0.03, side)


def _camera(canvas: Array, head: Head) -> Array:
    """Exposure metered on the face, part of the way, white balance left to the light; darker corners; sRGB."""
    scene, x, y = head.face.scene, *picture_axes(head.side)
    weight = head.inside[::4, ::4]
    metered = float((canvas[::4, ::4].mean(-1) * weight).sum() / max(weight.sum(), 1.0))
    own = float(linear(head.face.identity.skin).mean())
    gain = scene.exposure * (0.20 + 0.38 * own) / max(metered, 0.02)
    return develop(canvas * (gain * (1 - 0.10 * (x * x + y * y)))[..., None])
