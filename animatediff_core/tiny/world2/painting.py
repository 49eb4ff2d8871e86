"""Operations on images that drawing is made of. Legend: n images, h w pixels."""

from torch import Tensor


def pixels(values: Tensor) -> Tensor:
    """One number an image, as n 1 1."""
    return values.view(-1, 1, 1)


def cover(distance: Tensor, size: int) -> Tensor:
    """Share of each pixel inside, for signed distances in half widths."""
    return (0.5 - distance * (size / 2)).clamp(0, 1)


def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    a, b = first.view(-1, 3, 1, 1), second.view(-1, 3, 1, 1)
    return a + (b - a) * share.unsqueeze(1)


def over(image: Tensor, color: Tensor, share: Tensor) -> Tensor:
    """A colour, n 3, over the image."""
    return image + (color.view(-1, 3, 1, 1) - image) * share.unsqueeze(1)


def scatter(a: Tensor, b: Tensor) -> Tensor:
    """Numbers in [0, 1) that look random, the same for the same whole numbers."""
    return ((a * 12.9898 + b * 78.233).sin() * 43758.547).abs() % 1
