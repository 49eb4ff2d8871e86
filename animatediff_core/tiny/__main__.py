"""`python -m animatediff_core.tiny [measure]`: rebuild the bundled model, or measure it."""

import sys
from pathlib import Path

from .build import build
from .report import main as measure

if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        for line in measure(sys.argv[2:]):
            sys.stdout.write(line + "\n")
    else:
        for line in build(Path("build/tiny")):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
