"""`python -m animatediff_core.tiny [measure | measure-control]`: rebuild the bundled models, or
measure them."""

import sys
from pathlib import Path

from .build import build
from .control_report import main as measure_control
from .report import main as measure

_REPORTS = {"measure": measure, "measure-control": measure_control}

if __name__ == "__main__":
    report = _REPORTS.get(sys.argv[1]) if sys.argv[1:] else None
    for line in report(sys.argv[2:]) if report else build(Path("build/tiny")):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
