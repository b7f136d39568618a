"""3x3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3) for CPUs.

Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016). An output tile of 4 x 4 pixels takes
36 products for each pair of channels instead of 144: both the 6 x 6 input tile and the filter are transformed, then 36
matrix products over channels, then the transform back. It is the same convolution in another order of summation: in
float32 about four times as far from the exact result as the direct one, some 5e-5 of the output's deviation at most.

Feature maps go through in bands of rows that fit the processor's cache. What comes before the convolution
(normalisation, SiLU, doubling of the size) is done inside a band, so that none of it is written to memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

BAND = 2**22  # numbers in the largest buffer of a band, 16 MiB; larger is no faster, smaller waits more for threads
LEAST_CHANNELS, LEAST_TILES = 128, 64  # below these the transforms cost more than they save

_B = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6]]
_G += [[1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
# Six rows of a map doubled by nearest neighbours are these of four rows of the map itself.
_DOUBLE = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def _both_axes(matrix: Tensor) -> Tensor:
    """The transform along rows and along columns as one matrix on flattened tiles."""
    return torch.kron(matrix, matrix).float()


def _matrix(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


TILE = _both_axes(_matrix(_B))  # (36, 36)
DOUBLED_TILE = _both_axes(_matrix(_B) @ _matrix(_DOUBLE))  # (36, 16)
FILTER = _both_axes(_matrix(_G))  # (36, 9)
BACK = _both_axes(_matrix(_A))  # (16, 36)


def suits(x: Tensor, conv: nn.Conv2d, double: bool = False) -> bool:
    """Whether `convolve` computes this layer for x (B, C, H, W), and is worth it."""
    step = 2 if double else 4
    height, width = x.shape[-2:]
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.groups == 1
        and height % step == width % step == 0
        and conv.in_channels >= LEAST_CHANNELS
        and conv.out_channels >= LEAST_CHANNELS
        and len(x) * (height // step) * (width // step) >= LEAST_TILES
    )


def convolve(
    x: Tensor, conv: nn.Conv2d, before: Callable[[Tensor, int], Tensor] | None = None, double: bool = False
) -> Tensor:
    """conv(before(x)) for a 3x3 convolution of stride 1 and padding 1: (B, C, H, W) -> (B, N, H, W), channels last.

    `before` takes rows (h, W, C) of one picture and its index in the batch, and must work pixel by pixel. With
    `double` the map is doubled by nearest neighbours first, and (B, N, 2H, 2W) comes out. H and W are multiples of 4
    (of 2 with `double`); float32 on a CPU, without gradients.
    """
    batch, channels, height, width = x.shape
    step, edge = (2, 4) if double else (4, 6)
    across = width // step
    rows = min(max(1, BAND // (36 * across * max(channels, conv.out_channels))), height // step)
    filters = (FILTER @ conv.weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, conv.out_channels)
    out = x.new_empty(batch, 4 * height // step, 4 * width // step, conv.out_channels)
    band = _Band(filters, conv.bias, DOUBLED_TILE if double else TILE, rows, across, step, edge)
    for index, picture in enumerate(x.permute(0, 2, 3, 1)):
        for first in range(0, height // step, rows):
            last = min(first + rows, height // step)
            top, bottom = first * step - 1, last * step + 1
            inside = picture[max(top, 0) : min(bottom, height)]
            band.run(before(inside, index) if before else inside, top < 0, out[index, 4 * first : 4 * last])
    return out.permute(0, 3, 1, 2)


class _Band:
    """The buffers of one band of rows of tiles, and the passes over it."""

    def __init__(
        self, filters: Tensor, bias: Tensor | None, tile: Tensor, rows: int, across: int, step: int, edge: int
    ):
        self.filters, self.bias, self.tile = filters, bias, tile
        self.across, self.step, self.edge = across, step, edge
        _, channels, out_channels = filters.shape
        tiles = rows * across
        self.padded = filters.new_zeros(rows * step + edge - step, across * step + edge - step, channels)
        self.cut = filters.new_empty(edge * edge * tiles * channels)
        self.turned = filters.new_empty(36 * tiles * channels)
        self.products = filters.new_empty(36 * tiles * out_channels)
        self.back = filters.new_empty(16 * tiles * out_channels)

    def run(self, inside: Tensor, at_top: bool, out: Tensor) -> None:
        """Rows of the map (h, W, C), without the padding beyond its borders, into rows of the result."""
        _, channels, out_channels = self.filters.shape
        rows, edge, step = len(out) // 4, self.edge, self.step
        padded = self.padded[: rows * step + edge - step]
        padded[:at_top] = 0
        padded[at_top : at_top + len(inside), 1:-1] = inside
        padded[at_top + len(inside) :] = 0
        down, right, _ = padded.stride()
        overlapping = padded.as_strided(
            (edge, edge, rows, self.across, channels), (down, right, step * down, step * right, 1)
        )
        tiles = rows * self.across
        cut = self.cut[: edge * edge * tiles * channels]
        cut.view(overlapping.shape).copy_(overlapping)
        turned = self.turned[: 36 * tiles * channels]
        products = self.products[: 36 * tiles * out_channels]
        back = self.back[: 16 * tiles * out_channels]
        torch.mm(self.tile, cut.view(edge * edge, -1), out=turned.view(36, -1))
        torch.bmm(turned.view(36, tiles, channels), self.filters, out=products.view(36, tiles, out_channels))
        torch.mm(BACK, products.view(36, -1), out=back.view(16, -1))
        pixels = back.view(4, 4, rows, self.across, out_channels).permute(2, 0, 3, 1, 4)
        target = out.view(rows, 4, self.across, 4, out_channels)
        if self.bias is None:
            target.copy_(pixels)
        else:
            torch.add(pixels, self.bias, out=target)
