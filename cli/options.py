"""Options of the commands. Those for settings of a job are made from the job's declaration."""

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from animatediff_core.errors import AnimateDiffError
from animatediff_core.jobs import Adapter, Embedding, Job, preset_names, setting

_MACHINE, _RUN = "Machine", "Run"
"""Titles of groups of options in the help."""


def flag(*names: str, help: str, panel: str | None = _RUN) -> Any:
    """An option that is on or off; the help shows no type for it."""
    return typer.Option(*names, help=help, metavar="", rich_help_panel=panel)


Offline = Annotated[bool, flag("--offline", help="Never ask the hub; use its cached files.")]
Preview = Annotated[bool, flag("--preview", help="Show the clip in work as NAME.preview.png.")]
DryRun = Annotated[bool, flag("--dry-run", help="Check everything and show the plan.")]
Json = Annotated[bool, flag("--json", help="One JSON object a line on stdout.")]
Quiet = Annotated[bool, flag("--quiet", "-q", help="Only results and errors.")]
Debug = Annotated[bool, flag("--debug", help="Show the stack if something fails.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, e.g. output.crf=20; repeatable.",
    ),
]
PromptFile = Annotated[
    str | None,
    typer.Argument(metavar="FILE", help="Prompt file, or a clip to make again; - is stdin."),
]
Prompt = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="What to show, without a file.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Model with settings (inspect --presets).",
        autocompletion=preset_names,
    ),
]
Repeats = Annotated[
    int,
    typer.Option("-r", "--repeats", metavar="N", min=1, help="Clips a job, seeds counting up."),
]
Output = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="PATH", help="Folder, or the file of one clip."),
]
Root = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Where other programs' paths begin."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "-d",
        "--device",
        metavar="NAME",
        help="cuda, cuda:1, mps or cpu.",
        rich_help_panel=_MACHINE,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="fp32, fp16, bf16; on CUDA also tf32.",
        rich_help_panel=_MACHINE,
    ),
]
LowVram = Annotated[bool, flag("--low-vram", help="Least memory; slower.", panel=_MACHINE)]
Compile = Annotated[
    bool, flag("--compile", help="Compile the model; minutes once.", panel=_MACHINE)
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
_METAVARS = {
    "camera.moves": "MOVE[:SCALE]", "embeddings": "PATH[:WORD]", "loras": "PATH[:SCALE]",
    "motion_loras": "PATH[:SCALE]", "base": "MODEL", "motion": "MODULE", "seed": "N",
    "scheduler": "NAME", "output.format": "NAME", "negative_prompt": "TEXT",
}  # fmt: skip
_HELP = {
    "base": "Folder, file, hub id or preset's.",
    "variant": "Weights of this name, e.g. fp16.",
    "motion": "File, folder or ORG/REPOSITORY/FILE.",
    "motion_version": "v1, v2, v3, ..., if unclear.",
    "unet": "In place of the base model's UNet.",
    "vae": "In place of the base model's VAE.",
    "prediction_type": "epsilon, v_prediction or sample.",
    "loras": "LoRA; repeatable.",
    "motion_loras": "MotionLoRA; repeatable.",
    "camera.moves": "zoom-in, pan-left, ...; repeatable.",
    "embeddings": "Textual inversion; repeatable.",
    "window.length": "Frames denoised together.",
    "window.overlap": "Frames that neighbours share.",
    "window.stride": "Also frames 2, 4, ... 2**N apart.",
    "window.schedule": "standard_static, ..., looped_uniform.",
    "window.fuse": "pyramid, flat or overlap_linear.",
    "fast": "0 (the exact clip) to 3 (the fastest).",
    "seed": "0 to 2**64-1; -1 or none draws one.",
    "negative_prompt": "What not to show.",
    "output.fps": "Frames a second.",
    "output.format": "gif, mp4, webm, webp, apng or png.",
}
"""Help of one line; docs/settings.md has the full text of each setting."""
ALIASES = {
    "--cfg": "--guidance", "--cfg-scale": "--guidance", "--guidance-scale": "--guidance",
    "--num-frames": "--frames", "--video-length": "--frames", "--sampler": "--scheduler",
    "--negative-prompt": "--negative", "--num-inference-steps": "--steps",
    "--context-length": "--window", "--embeddings": "--embedding", "--loras": "--lora",
}  # fmt: skip
"""Names that options have in other programs."""

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
    """The option of a setting, with the type of its declaration."""
    declared = setting(Job, key)
    kind = list[str] if declared.is_list else declared.kind
    number = None if key == "seed" else {int: "N", float: "X"}.get(kind)  # a seed may be none
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    option = typer.Option(
        *_FLAGS[key],
        help=_HELP.get(key, declared.meaning),
        metavar=_METAVARS.get(key, number or ("NAME" if choices else "TEXT")),
        min=0 if key == "window.stride" else None,
        rich_help_panel=_PANELS.get(key.split(".")[0], "Clip"),
        autocompletion=(lambda: list(choices)) if choices else None,
    )
    return inspect.Parameter(
        key.replace(".", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[(kind if declared.is_list or number else str) | None, option],
    )


def without_aliases(arguments: list[str], known: set[str]) -> list[str]:
    """A command line with this program's names of options, where the command has these."""
    renamed: list[str] = []
    for number, text in enumerate(arguments):
        if text == "--":
            return renamed + arguments[number:]
        name, equals, value = text.partition("=")
        own = ALIASES.get(name, name)
        renamed.append(f"{own if own in known else name}{equals}{value}")
    return renamed


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
