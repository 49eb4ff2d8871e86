"""`animatediff generate`: options and prompt files to clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from animatediff_core.errors import AnimateDiffError, SurroundingsError, UnexpectedError
from animatediff_core.jobs import (
    FORMATS,
    Job,
    job_from_options,
    job_settings,
    load_prompt_file,
    output_name,
    parse_prompts,
)

from . import options, render
from .deferred import importing, will_compile

if TYPE_CHECKING:
    from animatediff_core.planning.jobs import Planned
    from animatediff_core.runs.generate import Result


def generate(
    prompt_file: Annotated[
        str | None,
        typer.Argument(
            help="Prompt file (YAML, or another program's), or a clip to make again; - is standard "
            "input."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What to show, without a file.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Model with its settings (see inspect --presets).")
    ] = None,
    base: options.Base = None,
    variant: options.Variant = None,
    motion: options.Motion = None,
    motion_version: options.MotionVersion = None,
    vae: options.Vae = None,
    prediction_type: options.PredictionType = None,
    lora: options.Lora = None,
    motion_lora: options.MotionLora = None,
    camera: options.Camera = None,
    embedding: options.Embedding = None,
    negative: Annotated[str | None, typer.Option("--negative", help="What not to show.")] = None,
    width: Annotated[int | None, typer.Option("-W", "--width", help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option("-H", "--height", help="Pixels.")] = None,
    frames: Annotated[
        int | None, typer.Option("-L", "--frames", help="Length of the clip.")
    ] = None,
    window: options.WindowLength = None,
    overlap: options.Overlap = None,
    stride: options.Stride = None,
    window_schedule: options.Schedule = None,
    fuse: options.FuseWeights = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Guidance scale; 1 is off.")
    ] = None,
    fast: Annotated[
        int | None,
        typer.Option(
            "--fast", min=0, max=3, help="Quicker for a price: 0 (exact) to 3; see docs/speed.md."
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Sampler, for instance ddim or euler.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="0 to 2**64-1; -1 or none draws one.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("-r", "--repeats", min=1, help="Clips for each job, seeds counting up.")
    ] = 1,
    fps: Annotated[float | None, typer.Option("--fps", help="Frames a second.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help=", ".join(FORMATS) + " (frames); default: gif.")
    ] = None,
    set_: options.Set = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the clips.")] = Path(
        "outputs"
    ),
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Where the paths of other programs' prompt files begin."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("-d", "--device", help="cuda, cuda:1, mps or cpu.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="fp32, fp16 or bf16.")] = None,
    low_vram: Annotated[
        bool,
        typer.Option("--low-vram", help="Least memory: weights wait in main memory, slower."),
    ] = False,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the model's blocks first: minutes once, quicker for ever after.",
        ),
    ] = False,
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
    given: dict[str, Any] = {
        "base": base, "variant": variant, "motion": motion, "motion_version": motion_version,
        "vae": vae, "prediction_type": prediction_type,
        "loras": options.adapters(lora) or None,
        "motion_loras": options.adapters(motion_lora) or None,
        "camera.moves": options.camera_moves(camera) or None,
        "embeddings": tuple(embedding) if embedding else None, "negative_prompt": negative,
        "width": width, "height": height, "frames": frames, "steps": steps,
        "guidance_scale": guidance, "scheduler": scheduler, "fast": fast, "seed": seed,
        "window.length": window, "window.overlap": overlap, "window.schedule": window_schedule,
        "window.stride": None if stride is None else stride + 1, "window.fuse": fuse,
        "output.fps": fps, "output.format": format,
    }  # fmt: skip
    said = options.settings(given, set_)
    jobs = _jobs(prompt_file, prompt, preset, said, repeats, root)
    options.go_offline(offline)
    if dry_run:
        with importing():
            from animatediff_core.planning.jobs import plan
            from animatediff_core.planning.memory import need_of
            from animatediff_core.runs.generate import check_machine
            from animatediff_core.sampling.device import choose

        check_machine(device, dtype, low_vram=low_vram, compiled=compile_)
        planned = plan(jobs, offline=offline)
        kinds = [choose(device, dtype, fast=one.job.fast > 0)[1] for one in planned]
        needs = [need_of(one, kind).peak for one, kind in zip(planned, kinds, strict=True)]
        _show_plan(planned, needs, output)
        return
    how = {"low_vram": low_vram, "compiled": compile_, "offline": offline}
    _run(jobs, output, device, dtype, how)


def _jobs(
    prompt_file: str | None,
    prompt: str | None,
    preset: str | None,
    said: dict[str, Any],
    repeats: int,
    root: Path | None,
) -> list[Job]:
    if prompt_file is None and prompt is None:
        raise AnimateDiffError("nothing to do; name a prompt file or give --prompt TEXT")
    if prompt_file is not None and prompt is not None:
        raise AnimateDiffError("a prompt file and --prompt cannot go together; use one of them")
    if prompt is not None:
        if "motion" in said and "base" not in said and preset is None:
            raise AnimateDiffError("--motion needs --base or --preset: which model should move?")
        chosen = {"preset": preset} if preset else {}
        return job_from_options({"prompt": prompt, **said, **chosen}, repeats)
    if preset is not None:
        raise AnimateDiffError("--preset goes with --prompt; in a prompt file write preset: NAME")
    assert prompt_file is not None
    if "base" in said and "motion" not in said:
        said = {**said, "motion": None}
    return _read(prompt_file, root, said, repeats)


def _read(prompt_file: str, root: Path | None, said: dict[str, Any], repeats: int) -> list[Job]:
    """The jobs of a prompt file; a clip stands for its sidecar, or for what it carries."""
    path = Path(prompt_file)
    if not path.is_dir() and path.suffix.lower().removeprefix(".") not in FORMATS:
        return load_prompt_file(prompt_file, root=root, overrides=said, repeats=repeats)
    from animatediff_core.media.settings import read_settings, sidecar_of

    sidecar = sidecar_of(path)
    if sidecar.is_file():
        return load_prompt_file(sidecar, root=root, overrides=said, repeats=repeats)
    text = read_settings(path)
    if text is None:
        raise AnimateDiffError(
            f"{path}: carries no settings and has no sidecar {sidecar.name} beside it; name a "
            "clip made by generate, or a prompt file"
        )
    return parse_prompts(text, str(path), path.parent, root, said, repeats)


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
        (p.job.name, str(p.job.seed), p.job.prompt[0][:60], p.job.base, p.found.motion_path.name,
         f"{p.job.frames} x {p.job.width} x {p.job.height}", str(p.job.steps),
         f"{peak / 1e9:.1f} GB")
        for p, peak in zip(planned, bytes_needed, strict=True)
    ]  # fmt: skip
    columns = ("job", "seed", "prompt", "base", "motion", "frames", "steps", "memory")
    render.table(f"{len(rows)} clips would be made", columns, rows)


def _run(
    jobs: list[Job],
    output: Path,
    device: str | None,
    dtype: str | None,
    how: dict[str, bool],
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
                    steps, description="steps", total=info.steps, completed=done,
                    info=event.job.name,
                )  # fmt: skip
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
