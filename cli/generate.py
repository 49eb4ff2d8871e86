"""`animatediff generate`: options and prompt files to clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from animatediff_core.errors import AnimateDiffError, Problems, SurroundingsError, UnexpectedError
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

if TYPE_CHECKING:
    from animatediff_core.planning.jobs import Planned
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
    over = parse_settings(settings, set_ or [])
    if prompt is None:
        jobs, problems = _from_file(prompt_file, preset, over, repeats, root)
    else:
        jobs, problems = _from_prompt(prompt, prompt_file, preset, over, repeats), Problems()
    options.go_offline(offline)
    if problems.found:  # planning may find more, to be reported in the same round
        with importing():
            from animatediff_core.planning.jobs import plan
        with problems.collecting():
            plan(jobs, offline=offline)
        problems.check()
    how = {"low_vram": low_vram, "compiled": compile_}
    if dry_run:
        _show(jobs, output, device, dtype, how, offline)
    else:
        _run(jobs, output, device, dtype, {**how, "offline": offline})


def _from_prompt(
    prompt: str, prompt_file: str | None, preset: str | None, over: dict[str, Any], repeats: int
) -> list[Job]:
    """The jobs of --prompt and the other options."""
    if prompt_file is not None:
        raise AnimateDiffError("a prompt file and --prompt cannot go together; use one of them")
    if "motion" in over and "base" not in over and preset is None:
        raise AnimateDiffError("--motion needs --base or --preset: which model should move?")
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
    if path.is_dir() or path.suffix.lower().removeprefix(".") in FORMATS:
        from animatediff_core.media.settings import read_settings, sidecar_of

        sidecar = sidecar_of(path)
        if sidecar.is_file():
            path = sidecar
        elif (text := read_settings(path)) is None:
            raise AnimateDiffError(
                f"{path}: carries no settings and has no sidecar {sidecar.name} beside it; name a "
                "clip made by generate, or a prompt file"
            )
    return valid_jobs(path, text=text, root=root, overrides=over, repeats=repeats)


def _show(
    jobs: list[Job],
    output: Path,
    device: str | None,
    dtype: str | None,
    how: dict[str, bool],
    offline: bool,
) -> None:
    """Print the clips that would be made, and the memory that they need."""
    with importing():
        from animatediff_core.planning.jobs import plan
        from animatediff_core.planning.memory import need_of
        from animatediff_core.runs.generate import check_machine
        from animatediff_core.sampling.device import choose

    check_machine(device, dtype, **how)
    planned = plan(jobs, offline=offline)
    kinds = [choose(device, dtype, fast=one.job.fast > 0)[1] for one in planned]
    needs = [need_of(one, kind).peak for one, kind in zip(planned, kinds, strict=True)]
    _show_plan(planned, needs, output)


def _show_plan(planned: "list[Planned]", bytes_needed: list[int], output: Path) -> None:
    for one, peak in zip(planned, bytes_needed, strict=True):
        job = one.job
        path = f"{output / output_name(job)}{job.output.suffix}"
        record = {
            "path": path,
            **job_settings(job),
            "motion": str(one.found.motion_path),
            "memory": peak,
        }
        render.result(path, record)
    rows = [
        (
            p.job.name,
            str(p.job.seed),
            next(iter(p.job.prompt.values()))[:60],
            p.job.base,
            p.found.motion_path.name,
            f"{p.job.frames} x {p.job.width} x {p.job.height}",
            str(p.job.steps),
            f"{peak / 1e9:.1f} GB",
        )
        for p, peak in zip(planned, bytes_needed, strict=True)
    ]
    columns = ("job", "seed", "prompt", "base", "motion", "frames", "steps", "memory")
    render.table(f"{len(rows)} clips would be made", columns, rows)


def _run(
    jobs: list[Job], output: Path, device: str | None, dtype: str | None, how: dict[str, bool]
) -> None:
    with importing():
        from animatediff_core.runs.generate import JobStep, Loading, Result, run

    errors: list[AnimateDiffError] = []
    with render.progress() as bars:
        total = bars.add_task("clips", total=len(jobs), info="")
        steps = bars.add_task("steps", total=None, info="")
        for event in run(jobs, output_dir=output, device=device, dtype=dtype, **how):
            if isinstance(event, Loading):
                bars.update(steps, description="loading", info=event.source, completed=0)
            elif isinstance(event, JobStep):
                info = event.info
                done = info.step + info.window / info.windows
                bars.update(
                    steps,
                    description="steps",
                    total=info.steps,
                    completed=done,
                    info=event.job.name,
                )
            elif isinstance(event, Result):
                bars.advance(total)
                _tell(event, errors)
    if errors:
        lost = [error for error in errors if isinstance(error, SurroundingsError)]
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
