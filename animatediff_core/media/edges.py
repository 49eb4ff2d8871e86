"""Canny edge detection (IEEE PAMI 8, 1986) without blur, as for the training of ControlNets.

Steps and thresholds are those of OpenCV's `Canny(image, low, high)`: Sobel gradients with the L1
norm, non-maximum suppression, hysteresis.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_TAN_22 = np.tan(np.pi / 8)


def canny(image: np.ndarray, low: float = 100, high: float = 200) -> np.ndarray:
    """White edges on black, h w 3 uint8, of an image h w 3 uint8.

    Gradients above `high` are edges, and those above `low` that touch one. A step from black to
    white has 1020.
    """
    gx, gy = _gradients(image.astype(np.int32))
    strength = np.abs(gx) + np.abs(gy)
    thin = _local_maxima(strength, gx, gy)
    edges = _hysteresis(thin & (strength > high), thin & (strength > low))
    return np.repeat(edges[..., None].astype(np.uint8) * 255, 3, axis=2)


def _gradients(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel gradients, h w each, of the channel in which they are strongest."""
    p = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = p[:-2] + 2 * p[1:-1] + p[2:]
    columns = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    gx, gy = rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]  # h w 3
    best = (np.abs(gx) + np.abs(gy)).argmax(axis=2)[..., None]
    gx, gy = (np.take_along_axis(g, best, axis=2)[..., 0] for g in (gx, gy))
    return gx, gy


def _local_maxima(strength: np.ndarray, gx: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Non-maximum suppression: pixels whose gradient is strongest along its direction, of four."""
    height, width = strength.shape
    p = np.pad(strength, 1)
    horizontal = np.abs(gy) < _TAN_22 * np.abs(gx)
    vertical = np.abs(gx) < _TAN_22 * np.abs(gy)
    diagonal = ~horizontal & ~vertical
    falling = diagonal & (gx * gy >= 0)  # to the lower right
    maxima = np.zeros(strength.shape, bool)
    for mask, dy, dx in (
        (horizontal, 0, 1),
        (vertical, 1, 0),
        (falling, 1, 1),
        (diagonal & ~falling, 1, -1),
    ):
        before = p[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        after = p[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        above = strength > after if dy and dx else strength >= after
        maxima |= mask & (strength > before) & above
    return maxima


def _hysteresis(strong: np.ndarray, weak: np.ndarray) -> np.ndarray:
    """Strong pixels, and all weak ones that are connected to one, diagonals included."""
    edges = strong
    while True:
        near = sliding_window_view(np.pad(edges, 1), (3, 3)).any(axis=(2, 3))
        grown = near & weak | edges
        if (grown == edges).all():
            return edges
        edges = grown
