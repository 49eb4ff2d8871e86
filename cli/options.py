"""Options that several commands share, so that they read the same everywhere."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

import typer

from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import Adapter, Fuse, Move, WindowSchedule, parse_settings


def _choices(choices: object, usual: str) -> str:
    return f"{' or '.join(get_args(choices))}; default: {usual}."


Base = Annotated[
    str | None,
    typer.Option(
        "--base", help="Base model: preset's, diffusers folder, checkpoint file or hub id."
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(
        help="Which weights of the base model's folder or hub id, for instance fp16; default: the "
        "plain ones."
    ),
]
Motion = Annotated[
    str | None,
    typer.Option(
        "--motion", help="Motion module: file, folder, or ORG/REPOSITORY/FILE on the hub."
    ),
]
MotionVersion = Annotated[
    str | None,
    typer.Option(help="Version of the motion module (v1, v2, v3, …) where its file cannot tell."),
]
Lora = Annotated[
    list[str] | None, typer.Option("--lora", help="LoRA as PATH or PATH:SCALE; may be repeated.")
]
MotionLora = Annotated[
    list[str] | None,
    typer.Option("--motion-lora", help="MotionLoRA as PATH or PATH:SCALE; may be repeated."),
]
Camera = Annotated[
    list[str] | None,
    typer.Option(
        "--camera",
        help="Camera move for a v2 motion module, as MOVE or MOVE:SCALE; may be repeated. "
        + _choices(Move, "none"),
    ),
]
Embedding = Annotated[
    list[str] | None, typer.Option("--embedding", help="Textual inversion file; may be repeated.")
]
Vae = Annotated[str | None, typer.Option("--vae", help="VAE to use instead of the base model's.")]
PredictionType = Annotated[
    str | None,
    typer.Option(
        help="What the base model predicts: epsilon, v_prediction or sample; default: as its files "
        "say, else epsilon (SD2 checkpoint files: v_prediction)."
    ),
]
WindowLength = Annotated[
    int | None,
    typer.Option(
        "-C",
        "--window",
        help="Frames denoised together, for clips longer than the motion module's; default: all.",
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        "-O", "--overlap", help="Frames that windows share; default: a quarter of the window."
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "-S",
        "--stride",
        min=0,
        help="Windows also over frames 2, 4, ... 2**N apart; default: 0, neighbours only. (In a "
        "prompt file window.stride is one more: the number of such scales.)",
    ),
]
Schedule = Annotated[
    str | None, typer.Option("--window-schedule", help=_choices(WindowSchedule, "standard_uniform"))
]
FuseWeights = Annotated[
    str | None,
    typer.Option("--fuse", help="Weights where windows overlap: " + _choices(Fuse, "pyramid")),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any field of a job, for instance free_init.iterations=3, output.max_size=2MB, "
        "keyframes.images=first.png or motion_strength=0.8; may be repeated.",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the hub; use what is cached.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything and say what would happen; write nothing."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the stack where something fails.")]


def settings(given: Mapping[str, Any], others: Sequence[str] | None) -> dict[str, Any]:
    """What the command line says of a job, by dotted keys, and in its `KEY=VALUE` texts."""
    return parse_settings({k: v for k, v in given.items() if v is not None}, others or [])


def adapters(given: list[str] | None) -> tuple[Adapter, ...]:
    """`PATH[:SCALE]` texts as adapters."""
    parsed = []
    for text in given or []:
        path, colon, scale = text.rpartition(":")
        if not colon or "/" in scale or "\\" in scale:
            parsed.append(Adapter(path=text))
            continue
        try:
            parsed.append(Adapter(path=path, scale=float(scale)))
        except ValueError:
            if path == "bundled":
                parsed.append(Adapter(path=text))
                continue
            raise AnimateDiffError(
                f"{text}: the scale after the colon must be a number, for instance {path}:0.8"
            ) from None
    return tuple(parsed)


def camera_moves(given: list[str] | None) -> list[dict[str, Any]]:
    """`MOVE[:SCALE]` texts as moves."""
    return [{"move": one.path, "scale": one.scale} for one in adapters(given)]


def go_offline(offline: bool) -> None:
    """Tell the hub's library too, before it is imported."""
    import os

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
