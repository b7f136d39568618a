"""The two closed forms of diffusion that OSDFace uses: forward to any timestep, and back in one step."""

from torch import Tensor


def forward_diffusion(z: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """F(z, t) of section 3.1: sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) noise.

    z, noise: (B, C, h, w); alpha_bar: scalar, or (B,) for a timestep per picture.
    """
    alpha_bar = alpha_bar.to(z).reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise.to(z)


def one_step(z: Tensor, epsilon: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_H of eq. 2 (and eq. 1): (z - sqrt(1 - alpha_bar) epsilon) / sqrt(alpha_bar).

    In float64 as the published program computes it, returned in z's type. alpha_bar: as above; a scalar may lie on the
    CPU whatever the device of z.
    """
    alpha_bar = alpha_bar.double()
    if alpha_bar.ndim:
        alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
    return ((z.double() - (1 - alpha_bar).sqrt() * epsilon.double()) / alpha_bar.sqrt()).to(z.dtype)
