"""What a restorer can be asked for, without torch: for command lines and the HTTP side of an endpoint."""

from typing import Literal

from pydantic import Field

from osdface.config import Strict

# auto: an aligned face as such, else every face found in the photograph, pasted back; whole: the picture as it is, in
# one pass; aligned: the picture is one aligned face.
FaceMode = Literal["auto", "whole", "aligned"]
ColourFix = Literal["none", "wavelet", "adain"]
# plain: as published, LoRA merged; folded: faster on CPUs, rounded more coarsely; lean: folded, in little memory, the
# UNet read anew at every pass (float32 on a CPU). docs/speed.md has figures.
Execution = Literal["plain", "folded", "lean"]
Dtype = Literal["float32", "bfloat16", "float16"]


class Wishes(Strict):
    """What is restored of a picture, and how.

    numbers: of the faces, from 1 for the leftmost; none means all. min_face: pixels of a face's box, across, below
    which it is left as it is. largest: only that face. strength: part of the change that is made. colour_fix: how the
    restored face gets the colours of the given one. upscale: of the photograph, by Lanczos. detector: as
    `detectors.detector` has it.
    """

    faces: FaceMode = "auto"
    numbers: tuple[int, ...] = ()
    min_face: int = Field(default=32, ge=0)
    largest: bool = False
    strength: float = Field(default=1.0, ge=0, le=1)
    colour_fix: ColourFix = "none"
    upscale: int = Field(default=1, ge=1, le=8)
    detector: str = "dlib"
