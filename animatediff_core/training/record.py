"""The loss of a run on disk: a table `loss.csv` and a plot `loss.png`."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..media.atomic import atomic_write
from ..media.image import write_image

SIZE = (640, 320)
MARGIN = 40


class LossRecord:
    """Losses by step; rows beyond a resumed step are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "loss.csv"
        self.rows: list[tuple[int, float, float]] = []
        if step and self.path.is_file():
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if int(row["step"]) <= step:
                        self.rows.append(
                            (int(row["step"]), float(row["loss"]), float(row["learning_rate"]))
                        )

    def add(self, step: int, loss: float, learning_rate: float) -> None:
        """Add one step; `save` writes it."""
        self.rows.append((step, loss, learning_rate))

    def save(self) -> None:
        """Write the table and the plot."""
        with atomic_write(self.path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([("step", "loss", "learning_rate"), *self.rows])
        losses = [loss for _, loss, _ in self.rows]
        write_image(draw_curve(losses), self.path.with_suffix(".png"))


def draw_curve(losses: Sequence[float]) -> np.ndarray:
    """Every loss as a dot and their running mean as a line: h w 3 uint8."""
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN, 15, SIZE[0] - 15, SIZE[1] - MARGIN
    draw.rectangle((left, top, right, bottom), outline="gray")
    finite = np.asarray([loss for loss in losses if np.isfinite(loss)])
    if len(finite):
        highest = float(np.quantile(finite, 0.99)) * 1.1 or 1.0
        x = np.linspace(left, right, len(finite)) if len(finite) > 1 else np.array([left])
        y = bottom - np.minimum(finite / highest, 1) * (bottom - top)
        draw.point([(float(a), float(b)) for a, b in zip(x, y, strict=True)], fill="lightblue")
        width = max(len(finite) // 50, 1)
        mean = np.convolve(finite, np.ones(width) / width, mode="valid")
        smooth = bottom - np.minimum(mean / highest, 1) * (bottom - top)
        line = list(zip(x[width - 1 :].tolist(), smooth.tolist(), strict=True))
        if len(line) > 1:
            draw.line(line, fill="navy", width=2)
        draw.text((4, top), f"{highest:.3g}", fill="black")
        draw.text((4, bottom - 8), "0", fill="black")
    draw.text((left, bottom + 8), f"loss over {len(losses)} steps", fill="black")
    return np.asarray(image)
