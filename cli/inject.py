"""`animatediff inject`: base model, adapters and motion module as one folder, or as plain files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from animatediff_core.errors import AnimateDiffError

from . import options, render
from .deferred import importing

if TYPE_CHECKING:
    from animatediff_core.runs.inject import InjectPlan

Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder to write; must be new.")
]
MotionFile = Annotated[
    Path | None,
    typer.Option(help="Write the motion module as one .safetensors file of official keys."),
]
SingleFile = Annotated[
    Path | None,
    typer.Option(
        help="Write the merged base model as one .safetensors checkpoint in the original "
        "layout (SD1.x, SD2.x, SDXL); alone it needs no motion module."
    ),
]
KeepAdapters = Annotated[
    bool,
    options.flag(
        "--keep-adapters",
        help="Copy LoRAs and MotionLoRAs into the folder instead of merging them; stock "
        "diffusers opens it without them.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision to write: fp32, fp16 or bf16; the VAE stays fp32. The folder gives "
        "the frames of its parts if both run in this precision."
    ),
]


@options.of_job(*options.MODEL)
def inject(
    output: Output = None,
    motion_file: MotionFile = None,
    single_file: SingleFile = None,
    settings: Any = None,
    keep_adapters: KeepAdapters = False,
    dtype: Dtype = "fp32",
    offline: options.Offline = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Merge LoRAs into a base model and put a motion module beside it; prints what was written.

    `generate --base FOLDER` and stock diffusers' AnimateDiffPipeline both open the folder. If
    diffusers' arithmetic differs from the motion module's own, the difference is measured.
    """
    render.configure(quiet=quiet, as_json=json, debug=debug)
    if "base" not in settings:
        raise AnimateDiffError("--base is missing: which model should be made to move?")
    options.go_offline(offline)
    with importing():
        from animatediff_core.planning.models import ModelSpec
        from animatediff_core.runs import inject as use

    planned = use.plan(
        ModelSpec(**settings),
        output,
        motion_file=motion_file,
        single_file=single_file,
        dtype=dtype,
        keep_adapters=keep_adapters,
        offline=offline,
    )
    record = _record(planned, dtype)
    if not dry_run:
        record["difference"] = use.run(planned, offline=offline).difference
        _note_difference(record["difference"], quiet)
    moved = planned.animated
    with_motion = f" + {moved.motion_path} ({moved.motion_config.version})" if moved else ""
    render.note(f"{planned.found.base_path}{with_motion}")
    render.result("\n".join(map(str, planned.outputs)), record)


def _record(planned: "InjectPlan", dtype: str) -> dict[str, object]:
    """The record of `--json`: the paths that are read and written."""
    paths: dict[str, object] = {
        "folder": planned.output,
        "motion_file": planned.motion_file,
        "single_file": planned.single_file,
        "base": planned.found.base_path,
        "motion": planned.animated and planned.animated.motion_path,
    }
    return {key: path and str(path) for key, path in paths.items()} | {"dtype": dtype}


def _note_difference(difference: object, quiet: bool) -> None:
    if difference is None:
        return
    text = "stock diffusers computes this motion module as we do"
    if difference != 0:
        text = (
            "stock diffusers normalises motion over all frames and ResNets over each: what its "
            f"UNet predicts in one step differs from ours by {difference:.3g} (relative L2)"
        )
    render.note(text, always=not quiet)
