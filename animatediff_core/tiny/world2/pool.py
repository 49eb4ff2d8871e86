"""Samples that are used again: drawing and encoding cost more than a UNet learns from one look."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Pool:
    """Holds samples on the device; each draw replaces a few by new ones.

    `make(count)` gives tensors with `count` rows each.
    """

    def __init__(
        self, make: Callable[[int], Sequence[Tensor]], size: int, new: int, chunk: int
    ) -> None:
        self.make, self.size, self.new = make, size, new
        made = [make(chunk) for _ in range(size // chunk)]
        self.rows = [torch.cat(parts) for parts in zip(*made, strict=True)]
        self.size = len(self.rows[0])

    def draw(self, count: int) -> list[Tensor]:
        """Random rows, after some were replaced."""
        device = self.rows[0].device
        place = torch.randint(self.size, (self.new,), device=device)
        for rows, fresh in zip(self.rows, self.make(self.new), strict=True):
            rows.index_copy_(0, place, fresh)
        chosen = torch.randint(self.size, (count,), device=device)
        return [rows[chosen] for rows in self.rows]
