"""Canny's edges (IEEE PAMI 8, 1986), as ControlNet's were made: of the picture itself, unblurred.

The steps and thresholds are those of OpenCV's `Canny(picture, low, high)`: Sobel gradients with the
sum of their magnitudes as strength, thinned along their direction, then grown from strong to weak.
"""

import numpy as np

_TAN_22 = np.tan(np.pi / 8)


def canny(picture: np.ndarray, low: float = 100, high: float = 200) -> np.ndarray:
    """White edges on black, h w 3 uint8, of a picture h w 3 uint8.

    Gradients above `high` are edges, those above `low` where they touch one; both on the scale of
    Sobel's kernel, where a step from black to white has 1020.
    """
    across, down = _strongest_gradients(picture.astype(np.int32))
    strength = np.abs(across) + np.abs(down)
    thin = _thinned(strength, across, down)
    weak = thin & (strength > low)
    edges = _grown(thin & (strength > high), weak)
    return np.repeat(edges[..., None].astype(np.uint8) * 255, 3, axis=2)


def _strongest_gradients(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel's two gradients, h w, of the channel in which they are strongest."""
    p = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = p[:-2] + 2 * p[1:-1] + p[2:]
    columns = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    across = rows[:, 2:] - rows[:, :-2]  # h w 3
    down = columns[2:] - columns[:-2]
    best = (np.abs(across) + np.abs(down)).argmax(axis=2)[..., None]
    return (
        np.take_along_axis(across, best, axis=2)[..., 0],
        np.take_along_axis(down, best, axis=2)[..., 0],
    )


def _thinned(strength: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Where a gradient is the strongest along its own direction, of four."""
    height, width = strength.shape
    p = np.pad(strength, 1)

    def beside(dy: int, dx: int) -> np.ndarray:
        return p[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    horizontal = np.abs(down) < _TAN_22 * np.abs(across)
    vertical = np.abs(across) < _TAN_22 * np.abs(down)
    falling = ~horizontal & ~vertical & (across * down >= 0)  # towards the lower right
    directions = ((horizontal, 0, 1), (vertical, 1, 0), (falling, 1, 1),
                  (~horizontal & ~vertical & ~falling, 1, -1))  # fmt: skip
    thin = np.zeros(strength.shape, bool)
    for where, dy, dx in directions:
        before, after = beside(-dy, -dx), beside(dy, dx)
        straight = where & (strength > before) & (strength >= after)
        slanted = where & (strength > before) & (strength > after)
        thin |= slanted if dy and dx else straight
    return thin


def _grown(strong: np.ndarray, weak: np.ndarray) -> np.ndarray:
    """All weak points that are joined to a strong one, over corners too."""
    edges = strong
    while True:
        p = np.pad(edges, 1)
        height, width = edges.shape
        near = np.zeros_like(edges)
        for dy in range(3):
            for dx in range(3):
                near |= p[dy : dy + height, dx : dx + width]
        more = near & weak | edges
        if (more == edges).all():
            return edges
        edges = more
