"""Procedural faces: pictures for those who have none, the training and test data of the embedded default.

A face is a set of seeded numbers, an identity apart from what changes from picture to picture; drawing it is a pure
function. The head is a relief on an elliptic column that is turned and traced per pixel, lit in linear light; hair,
brows, lashes and beards are drawn strand by strand. Pictures are framed as FFHQ frames its own.

Lengths are in half picture sides of a frontal face: the picture is [-1, 1] both ways, x to the right, y downwards,
z to the viewer; eyes lie near y = -0.05.
"""

from osdface.procedural.dataset import METADATA, make
from osdface.procedural.parameters import VERSION, Face, Identity, Scene, sample
from osdface.procedural.rendering import render

__all__ = ["METADATA", "VERSION", "Face", "Identity", "Scene", "make", "render", "sample"]
