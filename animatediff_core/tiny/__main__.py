"""`python -m animatediff_core.tiny [measure | measure-control]`: rebuild the bundled models, or
measure them."""

import sys
from pathlib import Path

from .build import build
from .control_report import main as measure_control
from .report import main as measure

_REPORTS = {"measure": measure, "measure-control": measure_control}

if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in _REPORTS:
        for line in _REPORTS[sys.argv[1]](sys.argv[2:]):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    else:
        for line in build(Path("build/tiny")):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
