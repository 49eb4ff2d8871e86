"""The plan of `generate`: jobs, machine, folder and memory checked before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Problems
from ..jobs import Job
from ..planning.jobs import Planned, plan
from ..planning.memory import FASTEST, Need, check_memory, memory_fallbacks, need_of
from ..planning.output import check_folder
from ..sampling.compiling import check_compiling
from ..sampling.device import choose
from ..sampling.placement import Placement
from .timing import seconds_of


@dataclass(frozen=True)
class PlannedClip(Planned):
    """A planned job, and where its model will run."""

    placement: Placement

    @property
    def seconds(self) -> float | None:
        """The time of such a clip on this machine; None if it has made none."""
        placement = self.placement
        return seconds_of(self.job, self.found.family, placement.device, placement.dtype)

    @property
    def need(self) -> Need:
        """The memory that it takes."""
        return need_of(self, self.placement.dtype, self.placement.memory)


def plan_run(
    jobs: Sequence[Job],
    folder: Path,
    device: str | None,
    dtype: str | None,
    *,
    offline: bool = False,
    low_vram: bool = False,
    compiled: bool = False,
) -> list[PlannedClip]:
    """Check everything that can be checked before a model is loaded; nothing is written.

    Raises if the machine, the output folder, a job or its memory cannot work.
    """
    on, _ = choose(device, dtype)
    memory = memory_fallbacks(on)[-1] if low_vram else FASTEST
    if compiled:
        check_compiling(on, memory)
    check_folder(folder, jobs)
    clips, problems = [], Problems()
    for planned in plan(jobs, offline=offline):
        job = planned.job
        number = choose(device, dtype, fast=job.fast > 0)[1]
        clips.append(PlannedClip(job, planned.found, Placement(on, number, memory, compiled)))
        with problems.collecting(job.origin or job.name):
            check_memory(planned, number, on)
    problems.check()
    return clips
