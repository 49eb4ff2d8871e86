"""3 x 3 convolutions by Winograd's minimal filtering, with a quarter of the multiplications.

F(4 x 4, 3 x 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
(arXiv 1509.09308): y = A' ((G g G') * (B' d B)) A, where d are overlapping tiles of 6 x 6 pixels,
g the kernels and y the 4 x 4 outputs of a tile. Each transform is linear in all pixels of a tile
at once, hence one matrix product; so is *, over the channels, at each of the 36 places. Kernels
are transformed in every call, some at a time, so that no weight is kept twice.

The transforms are made of the points 0, 3/4, -3/4, 3/2, -3/2 and infinity, which round a third as
much as 0, 1, -1, 2, -2 and infinity do.

Legend: n pictures, h w size, c channels in, k channels out, t tiles, u v tiles down and across.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_OUT, _IN, _TAPS = 4, 6, 3
"""Outputs and inputs of a tile, and taps of a kernel, down and across."""
_PLACES = _IN * _IN
_MEGABYTE = (1 << 20) // (4 * _PLACES)
"""Numbers at each of the places of a tile."""
_CHUNK = 2 * _MEGABYTE
"""Tiles times channels that are transformed together."""
_GROUP = 32 * _MEGABYTE
"""Tiles times channels that are multiplied together."""
_KERNELS = 32 * _MEGABYTE
"""Channels in times channels out that they are multiplied by at a time."""
_CHANNELS = 128
"""With fewer, in or out, the transforms cost what the products save."""
_TILES = 64
"""With fewer the kernels' transform does."""
_WORK = 64 * 192
"""Tiles times channels, the fewer of in and out, from which on it was measured to pay."""


def pays(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is the faster way for a layer and its input, n c h w; by shapes alone."""
    fits = (
        layer.kernel_size == (_TAPS, _TAPS)
        and layer.stride == layer.dilation == layer.padding == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and x.dtype == torch.float32
    )
    tiles = x.shape[0] * ceil(x.shape[2] / _OUT) * ceil(x.shape[3] / _OUT)
    channels = min(layer.in_channels, layer.out_channels)
    large = channels >= _CHANNELS and tiles >= _TILES and channels * tiles >= _WORK
    return fits and large


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None = None,
    *,
    transposed: bool = False,
) -> Tensor:
    """A convolution by 3 x 3 with padding 1, plus `other`, in fp32.

    x: n c h w, best channels-last; weight: k c 3 3, or c k 3 3 of the convolution whose gradient
    `transposed` makes, from that of its outputs to that of its inputs; other: n k h w -> n k h w,
    channels-last. Beside them it takes about 100 MB at most.
    """
    weight = weight.transpose(0, 1) if transposed else weight
    features, channels = weight.shape[:2]
    pixels = x.permute(0, 2, 3, 1)
    added = None if other is None else other.permute(0, 2, 3, 1)
    step = _even(features, _KERNELS // channels)
    widest = max(channels, step)
    chunks = list(_chunks(x.shape, _CHUNK // widest))
    groups = list(_groups(chunks, _GROUP // widest))
    most = max(map(_num_tiles, groups))
    kernel_room, tile_room, sum_room = _ROOMS.of(
        _PLACES * step * channels, _PLACES * most * channels, (_PLACES + 1) * most * step
    )
    out = x.new_empty(x.shape[0], *x.shape[2:], features)
    for group in groups:
        tiles = _cut(tile_room, _PLACES, _num_tiles(group), channels)
        for chunk, place in _places(group):
            chunk.read(pixels, tiles[:, place])
        for first in range(0, features, step):
            some = slice(first, first + step)
            if group is groups[0] or step < features:
                kernels = _move_kernels(weight[some], kernel_room, transposed)
            sums = _multiply(tiles, kernels, None if bias is None else bias[some], sum_room)
            for chunk, place in _places(group):
                other_some = None if added is None else added[..., some]
                chunk.write(sums[:, place], other_some, out[..., some])
    return out.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Chunk:
    """Tiles that are in work together: some rows of tiles of some pictures."""

    pictures: slice
    top: int
    """First row of pixels."""
    shape: tuple[int, int, int]
    """Pictures, tiles down and across."""

    @property
    def num_tiles(self) -> int:
        """t."""
        return prod(self.shape)

    def read(self, pixels: Tensor, moved: Tensor) -> None:
        """pixels: n h w c -> moved: 36 t c."""
        _, down, across = self.shape
        height, width, channels = pixels.shape[1:]
        first, last = self.top - 1, self.top + _OUT * down + 1
        inside = pixels[self.pictures, max(0, first) : last]
        border = (1, _OUT * across + 1 - width, max(0, -first), max(0, last - height))
        windows = F.pad(inside, (0, 0, *border)).unfold(1, _IN, _OUT).unfold(2, _IN, _OUT)
        tiles = windows.permute(4, 5, 0, 1, 2, 3).reshape(_PLACES, -1)  # 6 6 n u v c
        torch.mm(_transforms()[0], tiles, out=moved.view(_PLACES, -1))

    def write(self, sums: Tensor, added: Tensor | None, out: Tensor) -> None:
        """sums: 37 t k; added, out: n h w k."""
        _, down, across = self.shape
        rows = slice(self.top, self.top + _OUT * down)
        place = out[self.pictures, rows]
        other = None if added is None else added[self.pictures, rows]
        results = torch.mm(_transforms()[2], sums.flatten(1)).view(_OUT, _OUT, *self.shape, -1)
        values = results.permute(2, 3, 0, 4, 1, 5)  # n u 4 v 4 k
        if place.shape[1:3] == (_OUT * down, _OUT * across):
            place = _as_tiles(place)
            other = None if other is None else _as_tiles(other)
        else:
            values = values.flatten(3, 4).flatten(1, 2)[:, : place.shape[1], : place.shape[2]]
        if other is None:
            place.copy_(values)
        else:
            torch.add(values, other, out=place)


def _chunks(shape: torch.Size, most: int) -> Iterator[_Chunk]:
    """All tiles of n c h w, about `most` at a time, or one row of them."""
    count, (down, across) = shape[0], (ceil(side / _OUT) for side in shape[2:])
    rows = _even(down, most // across)
    together = 1 if rows < down else _even(count, most // (down * across))
    for first in range(0, count, together):
        pictures = slice(first, min(first + together, count))
        for row in range(0, down, rows):
            size = (pictures.stop - first, min(rows, down - row), across)
            yield _Chunk(pictures, row * _OUT, size)


def _groups(chunks: list[_Chunk], most: int) -> Iterator[list[_Chunk]]:
    """Chunks whose tiles are multiplied together: about `most` tiles."""
    size = _even(len(chunks), most // chunks[0].num_tiles)
    for first in range(0, len(chunks), size):
        yield chunks[first : first + size]


def _places(group: list[_Chunk]) -> Iterator[tuple[_Chunk, slice]]:
    """Each chunk and where its tiles are in its group's."""
    first = 0
    for chunk in group:
        yield chunk, slice(first, first + chunk.num_tiles)
        first += chunk.num_tiles


def _num_tiles(group: list[_Chunk]) -> int:
    return sum(chunk.num_tiles for chunk in group)


def _even(total: int, most: int) -> int:
    """The size of equal parts of a total that have `most` at most, or 1."""
    return ceil(total / ceil(total / max(1, most)))


def _move_kernels(weight: Tensor, room: Tensor, transposed: bool) -> Tensor:
    """k c 3 3 -> 36 c k; of a transposed convolution taps count from the other end."""
    move = _transforms()[1]
    if transposed:
        given = weight.transpose(0, 1)  # c k 3 3, as it lies
        kernels = given.reshape(-1, _TAPS * _TAPS).t()
        moved = torch.mm(move.flip(1), kernels, out=_cut(room, _PLACES, kernels.shape[1]))
        return moved.view(_PLACES, *given.shape[:2])
    kernels = weight.reshape(-1, _TAPS * _TAPS).t()
    moved = torch.mm(move, kernels, out=_cut(room, _PLACES, kernels.shape[1]))
    return moved.view(_PLACES, *weight.shape[:2]).transpose(1, 2)


def _multiply(tiles: Tensor, kernels: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """36 t c and 36 c k -> 37 t k: what a tile adds up to at 36 places, and the bias."""
    sums = _cut(room, _PLACES + 1, tiles.shape[1], kernels.shape[2])
    sums[-1] = 0 if bias is None else bias
    torch.bmm(tiles, kernels, out=sums[:-1])
    return sums


class _Rooms(threading.local):
    """Where calls work, of each thread: kept, for fresh memory costs more than what it is for."""

    def __init__(self) -> None:
        self.kept = torch.empty(0)

    def of(self, *sizes: int) -> tuple[Tensor, ...]:
        """Rooms of so many numbers; what lay there is lost."""
        if self.kept.numel() < sum(sizes):
            with torch.inference_mode(False):  # also for calls with gradients
                self.kept = torch.empty(sum(sizes))
        parts: tuple[Tensor, ...] = self.kept[: sum(sizes)].split(sizes)
        return parts


_ROOMS = _Rooms()


def _cut(room: Tensor, *shape: int) -> Tensor:
    return room[: prod(shape)].view(shape)


def _as_tiles(pixels: Tensor) -> Tensor:
    """n (u 4) (v 4) k -> n u 4 v 4 k, a view."""
    tiles: Tensor = pixels.unflatten(1, (-1, _OUT)).unflatten(3, (-1, _OUT))
    return tiles


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of tiles, 36 x 36, kernels, 36 x 9, and sums, 16 x 37, whose last column adds the bias."""
    points = torch.tensor(_POINTS, dtype=torch.float64)
    others = [points[points != point] for point in points]
    tiles = torch.zeros(_IN, _IN, dtype=torch.float64)
    for row, roots in enumerate([*others, points]):
        tiles[row, : len(roots) + 1] = _coefficients(roots)
    scale = torch.stack([(p - rest).prod() for p, rest in zip(points, others, strict=True)])
    kernels = _at_infinity(torch.vander(points, _TAPS, increasing=True) / scale[:, None])
    sums = _at_infinity(torch.vander(points, _OUT, increasing=True)).T
    whole = [torch.kron(one, one) for one in (tiles, kernels, sums)]
    whole[2] = torch.cat([whole[2], torch.ones(_OUT * _OUT, 1)], dim=1)
    return whole[0].float(), whole[1].float(), whole[2].float()


def _coefficients(roots: Tensor) -> Tensor:
    """Of the product of all (x - root), that of 1 first."""
    product = torch.ones(1, dtype=torch.float64)
    for root in roots:
        product = F.pad(product, (1, 0)) - root * F.pad(product, (0, 1))
    return product


def _at_infinity(powers: Tensor) -> Tensor:
    """Powers of the points, and the highest of infinity."""
    last = torch.zeros_like(powers[:1])
    last[0, -1] = 1
    return torch.cat([powers, last])
