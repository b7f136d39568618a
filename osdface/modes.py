"""What a restorer can be asked for, without torch: for command lines and the HTTP side of an endpoint."""

from typing import Literal

# auto: an aligned face as such, else every face found in the photograph, pasted back; whole: the picture as it is, in
# one pass; aligned: the picture is one aligned face.
FaceMode = Literal["auto", "whole", "aligned"]
