"""`animatediff generate`: options and prompt files to clips."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animatediff_core.errors import AnimateDiffError, MachineError, Problems, UnexpectedError
from animatediff_core.jobs import (
    FORMATS,
    Job,
    job_from_options,
    job_settings,
    output_name,
    parse_settings,
    valid_jobs,
)

from . import options, render
from .deferred import importing, will_compile
from .progress import RunProgress, bars

if TYPE_CHECKING:
    from animatediff_core.runs.generate import Result


@options.of_job(*options.GENERATE)
def generate(
    prompt_file: options.PromptFile = None,
    prompt: options.Prompt = None,
    preset: options.Preset = None,
    settings: Any = None,
    set_: options.Set = None,
    repeats: options.Repeats = 1,
    root: options.Root = None,
    output: options.Output = Path("outputs"),
    device: options.Device = None,
    dtype: options.Dtype = None,
    low_vram: options.LowVram = False,
    compile_: options.Compile = False,
    preview: options.Preview = False,
    offline: options.Offline = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make clips from a prompt file or --prompt; prints one path a line."""
    render.configure(quiet=quiet, as_json=json, debug=debug)
    if compile_:
        will_compile()
    if is_file := _is_file(output):
        kind = output.suffix.lower().removeprefix(".")
        settings = {**settings, "output.format": kind, "output.name": output.stem}
    over = parse_settings(settings, set_ or [])
    if prompt is None:
        jobs, problems = _from_file(prompt_file, preset, over, repeats, root)
    else:
        jobs, problems = _from_prompt(prompt, prompt_file, preset, over, repeats), Problems()
    options.go_offline(offline)
    _check(jobs, problems, offline)
    if is_file:
        _check_file(output, len(jobs))
        output = output.parent
    how = {"low_vram": low_vram, "compiled": compile_, "offline": offline}
    if dry_run:
        _show(jobs, output, device, dtype, how)
    else:
        _run(jobs, output, device, dtype, {**how, "preview": preview})


def _check(jobs: list[Job], problems: Problems, offline: bool) -> None:
    """Raise the problems of a prompt file, with those that planning finds in its other jobs."""
    if problems.found:
        with importing():
            from animatediff_core.planning.jobs import plan
        with problems.collecting():
            plan(jobs, offline=offline)
        problems.check()


def _from_prompt(
    prompt: str, prompt_file: str | None, preset: str | None, over: dict[str, Any], repeats: int
) -> list[Job]:
    """The jobs of --prompt and the other options."""
    if prompt_file is not None:
        raise AnimateDiffError("a prompt file and --prompt cannot go together; use one of them")
    if "motion" in over and "base" not in over and preset is None:
        raise AnimateDiffError("--motion needs --base or --preset: which model should move?")
    if preset is None and "base" not in over:
        render.note(
            "no --base or --preset: the bundled model is used, which draws coloured shapes; "
            "`animatediff inspect --presets` lists others"
        )
    chosen = {"preset": preset} if preset else {}
    return job_from_options({"prompt": prompt, **over, **chosen}, repeats)


def _from_file(
    prompt_file: str | None,
    preset: str | None,
    over: dict[str, Any],
    repeats: int,
    root: Path | None,
) -> tuple[list[Job], Problems]:
    """The jobs of a prompt file; of a clip, those of its sidecar or of the settings in it."""
    if prompt_file is None:
        raise AnimateDiffError("nothing to do; name a prompt file or give --prompt TEXT")
    if preset is not None:
        raise AnimateDiffError("--preset goes with --prompt; in a prompt file write preset: NAME")
    if "base" in over and "motion" not in over:
        over = {**over, "motion": None}
    path, text = Path(prompt_file), None
    if os.path.isdir(path) or path.suffix.lower().removeprefix(".") in FORMATS:
        from animatediff_core.media.settings import settings_of

        path, text = settings_of(path)
    return valid_jobs(path, text=text, root=root, overrides=over, repeats=repeats)


def _is_file(output: Path) -> bool:
    """Whether -o names a clip's file, not a folder."""
    kind = output.suffix.lower().removeprefix(".")
    return kind in FORMATS and kind != "png" and not output.is_dir()


def _check_file(output: Path, count: int) -> None:
    """AnimateDiffError if `count` clips cannot become this file."""
    if count != 1:
        raise AnimateDiffError(
            f"-o {output}: is one file, but {count} clips would be made; name a folder"
        )
    if output.exists():
        raise AnimateDiffError(f"-o {output}: exists already; delete it, or choose another name")


def _show(
    jobs: list[Job],
    output: Path,
    device: str | None,
    dtype: str | None,
    how: dict[str, bool],
) -> None:
    """Print the clips that would be made, and the memory that they need."""
    with importing():
        from animatediff_core.media.names import planned_path
        from animatediff_core.runs.generate_plan import plan_run

    rows, paths = [], set[Path]()
    for clip in plan_run(jobs, output, device, dtype, **how):
        job, motion, peak = clip.job, clip.found.motion_path, clip.need.peak
        place = output / output_name(job)
        path = str(planned_path(place.parent, place.name, job.output.suffix, paths))
        record = {"path": path, **job_settings(job), "motion": str(motion), "memory": peak}
        record["seconds"] = clip.seconds
        render.result(path, record)
        size = f"{job.frames} x {job.width} x {job.height}"
        time = "?" if clip.seconds is None else f"{clip.seconds:.0f} s"
        memory = f"{peak / 1e9:.1f} GB"
        rows.append((job.name, job.base, size, job.steps, memory, time))
    widths = {"job": 19, "base model": 16, "frames": 15, "steps": 5, "memory": 7, "time": 6}
    render.table(f"clips that would be made: {len(rows)}", widths, rows)


def _run(
    jobs: list[Job], output: Path, device: str | None, dtype: str | None, how: dict[str, bool]
) -> None:
    with importing():
        from animatediff_core.runs.generate import JobStep, Loading, Result, Writing, run

    errors: list[AnimateDiffError] = []
    with bars() as shown:
        progress = RunProgress(shown, len(jobs))
        for event in run(jobs, output_dir=output, device=device, dtype=dtype, **how):
            if isinstance(event, Loading):
                render.note(
                    f"model: {event.source}, {event.num_parameters / 1e6:,.0f} million parameters, "
                    f"{event.dtype} on {event.device}"
                )
                progress.loading(event.source)
            elif isinstance(event, JobStep):
                info = event.info
                progress.step(event.job.name, info.step + info.window / info.windows, info.steps)
            elif isinstance(event, Writing):
                progress.writing()
            elif isinstance(event, Result):
                progress.finished()
                _tell(event, errors)
    if errors:
        lost = [error for error in errors if isinstance(error, MachineError)]
        raise SystemExit(3 if len(lost) == len(jobs) else 1)


def _tell(result: "Result", errors: list[AnimateDiffError]) -> None:
    record: dict[str, object] = {"name": result.job.name, "seed": result.job.seed}
    if result.error is None:
        render.result(str(result.path), {**record, "path": str(result.path), "error": None})
        return
    errors.append(result.error)
    render.error(str(result.error))
    if render.settings.debug and isinstance(result.error, UnexpectedError):
        render.error(result.error.stack)
    if render.settings.json:
        render.result("", {**record, "path": None, "error": str(result.error)})
