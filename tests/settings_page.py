"""The page of all settings, made from their declarations: `make settings` writes it."""

from pathlib import Path

from animatediff_core.jobs import Job, reference
from animatediff_core.training.config import TrainConfig

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"


def text() -> str:
    return reference(Job, TrainConfig)


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
