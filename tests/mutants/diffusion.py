"""Wrong changes of diffusion: noise, windows, schedules, guidance, text, the loop."""

from . import Table

MUTANTS: Table = {
    ("diffusion/size_conditions.py", "text"): [
        (
            "sizes = [height, width, 0, 0, height, width]",
            "sizes = [width, height, 0, 0, width, height]",
        ),
    ],
}
