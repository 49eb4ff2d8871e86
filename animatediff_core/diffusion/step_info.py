"""The position of a sampling loop."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """Position in the steps of a sampling run, and in the context windows of a step."""

    step: int
    """Steps of the run that are done."""
    steps: int
    """Steps of the run."""
    skipped: int = 0
    """Steps of the schedule before the run, which began from clean latents."""
    window: int = 0
    """Context windows that are done of the step in progress; 0 if a step is complete."""
    windows: int = 1
    """Context windows of the step; 1 if the clip is denoised as a whole."""

    @property
    def index(self) -> int:
        """Number of the step in progress in the whole schedule, 0 for the first."""
        return self.skipped + self.step

    @property
    def scheduled(self) -> int:
        """Steps of the whole schedule."""
        return self.skipped + self.steps
