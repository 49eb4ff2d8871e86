"""Options of the commands. Those for settings of a job are made from the job's declaration."""

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import Adapter, Embedding, Job, Move, WindowSchedule, setting
from animatediff_core.jobs.reading import described


def flag(*names: str, help: str) -> Any:
    """An option that is on or off; the help shows no type for it."""
    return typer.Option(*names, help=help, metavar="")


Offline = Annotated[bool, flag("--offline", help="Never ask the hub; use what is cached.")]
DryRun = Annotated[
    bool, flag("--dry-run", help="Check everything and say what would happen; write nothing.")
]
Json = Annotated[bool, flag("--json", help="One JSON object a line on stdout.")]
Quiet = Annotated[bool, flag("--quiet", "-q", help="Only results and errors.")]
Debug = Annotated[bool, flag("--debug", help="Show the stack if something fails.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting of a job, for instance free_init.iterations=3, output.max_size=2MB, "
        "keyframes.images=first.png or motion_strength=0.8; may be repeated.",
    ),
]
PromptFile = Annotated[
    str | None,
    typer.Argument(
        help="Prompt file (YAML, or another program's), or a clip to make again; - is standard "
        "input."
    ),
]
Prompt = Annotated[str | None, typer.Option("--prompt", help="What to show, without a file.")]
Preset = Annotated[
    str | None, typer.Option(help="Model with its settings (see inspect --presets).")
]
Repeats = Annotated[
    int, typer.Option("-r", "--repeats", min=1, help="Clips for each job, seeds counting up.")
]
Output = Annotated[
    Path, typer.Option("-o", "--output", help="Folder for the clips, or the file of one clip.")
]
Root = Annotated[
    Path | None, typer.Option(help="Where the paths of other programs' prompt files begin.")
]
Device = Annotated[str | None, typer.Option("-d", "--device", help="cuda, cuda:1, mps or cpu.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="fp32, fp16, bf16; on CUDA tf32.")]
LowVram = Annotated[
    bool, flag("--low-vram", help="Least memory: weights wait in main memory, slower.")
]
Compile = Annotated[
    bool, flag("--compile", help="Compile the model first: minutes once, then faster.")
]

MODEL = ("base", "variant", "motion", "motion_version", "unet", "vae", "prediction_type", "loras",
         "motion_loras", "embeddings")  # fmt: skip
_FLAGS: dict[str, tuple[str, ...]] = {
    "base": ("--base",), "variant": ("--variant",), "motion": ("--motion",),
    "motion_version": ("--motion-version",), "unet": ("--unet",), "vae": ("--vae",),
    "prediction_type": ("--prediction-type",), "loras": ("--lora",),
    "motion_loras": ("--motion-lora",), "camera.moves": ("--camera",),
    "embeddings": ("--embedding",), "negative_prompt": ("--negative",),
    "width": ("-W", "--width"), "height": ("-H", "--height"), "frames": ("-L", "--frames"),
    "window.length": ("-C", "--window"), "window.overlap": ("-O", "--overlap"),
    "window.stride": ("-S", "--stride"), "window.schedule": ("--window-schedule",),
    "window.fuse": ("--fuse",), "steps": ("--steps",), "guidance_scale": ("--guidance",),
    "fast": ("--fast",), "scheduler": ("--scheduler",), "seed": ("--seed",),
    "output.fps": ("--fps",), "output.format": ("--format",),
}  # fmt: skip
"""Settings of a job that have options, in the order of the help."""
GENERATE = tuple(_FLAGS)
_PANELS = dict.fromkeys((*MODEL, "camera"), "Model") | {
    "window": "Context windows", "output": "Output", "steps": "Sampling",
    "guidance_scale": "Sampling", "fast": "Sampling", "scheduler": "Sampling",
}  # fmt: skip
"""Titles of the groups of options in the help; the others are of the clip."""
_METAVARS = {"camera.moves": "MOVE[:SCALE]", "embeddings": "PATH[:WORD]"}
_HELP = {
    "camera.moves": f"Camera move for a v2 motion module: {described(Move)}",
    "window.schedule": f"How windows move from step to step: {described(WindowSchedule)}",
    "window.stride": "Windows also over frames 2, 4, ... 2**N apart; default: 0, neighbours only. "
    "(In a prompt file window.stride is one more: the number of such scales.)",
    "seed": "Whole number up to 2**64-1; -1 or none draws one.",
    "negative_prompt": "What not to show.",
}
"""Help of options that mean less than the setting, or count otherwise."""

Command = Callable[..., None]


def of_job(*keys: str) -> Callable[[Command], Command]:
    """Gives a command the options of these settings, for its parameter `settings`, which
    receives those that were used, by dotted key."""
    names = {key.replace(".", "_"): key for key in keys}

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**arguments: Any) -> None:
            used = {key: _value(key, arguments.pop(name)) for name, key in names.items()}
            settings = {key: value for key, value in used.items() if value is not None}
            command(**arguments, settings=settings)

        parameters: list[inspect.Parameter] = []
        for own in inspect.signature(command).parameters.values():
            made = [_parameter(key) for key in keys] if own.name == "settings" else [own]
            parameters += (one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in made)
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _parameter(key: str) -> inspect.Parameter:
    """The option of a setting, with the type and the help of its declaration."""
    declared = setting(Job, key)
    kind, text, metavar = declared.kind, _HELP.get(key, declared.meaning), None
    if get_origin(kind) is Literal:
        default = "" if declared.default is None else f"; default: {declared.default}"
        named = all(choice in text for choice in get_args(kind))
        text = f"{text.rstrip('.')}{'' if named else f': {declared.type}'}{default}."
    elif declared.is_list:
        text = f"{text.rstrip('.')}; may be repeated."
        metavar = _METAVARS.get(key, "PATH[:SCALE]")
    option = typer.Option(
        *_FLAGS[key],
        help=text,
        metavar=metavar,
        min=0 if key == "window.stride" else None,
        rich_help_panel=_PANELS.get(key.split(".")[0], "Clip"),
    )
    number = kind in (int, float) and key != "seed"  # which may be none
    kind = list[str] if declared.is_list else (kind if number else str)
    return inspect.Parameter(
        key.replace(".", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _value(key: str, value: Any) -> Any:
    """A value of the command line as that of the setting; None if it was not used."""
    if value is None or value == []:
        return None
    if key in ("loras", "motion_loras"):
        return adapters(value)
    if key == "camera.moves":
        return [{"move": one.path, "scale": one.scale} for one in adapters(value)]
    if key == "embeddings":
        return tuple(_embedding(text) for text in value)
    if key == "window.stride":
        return value + 1
    return tuple(value) if isinstance(value, list) else value


def adapters(texts: list[str]) -> tuple[Adapter, ...]:
    """`PATH[:SCALE]` texts as adapters."""
    parsed = []
    for text in texts:
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


def _embedding(text: str) -> Embedding:
    """A `PATH[:WORD]` text as an embedding."""
    path, colon, word = text.rpartition(":")
    if not colon or path == "bundled" or "/" in word or "\\" in word or Path(text).exists():
        return Embedding(path=text)
    return Embedding(path=path, word=word)


def go_offline(offline: bool) -> None:
    """Tell the hub's library too, before it is imported."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
