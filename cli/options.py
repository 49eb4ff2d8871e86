"""Options that several commands share, so that they read the same everywhere."""

from typing import Annotated

import typer

from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import Adapter

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
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the hub; use what is cached.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything and say what would happen; write nothing."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the stack where something fails.")]


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


def go_offline(offline: bool) -> None:
    """Tell the hub's library too, before it is imported."""
    import os

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
