"""`animatediff train`: a YAML configuration to a motion module (or a fine-tuned UNet)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from animatediff_core.errors import AnimateDiffError

from . import options, render
from .deferred import importing
from .progress import bars

if TYPE_CHECKING:
    from animatediff_core.training.config import TrainConfig


def train(
    config: Annotated[Path, typer.Argument(help="Training YAML, ours or the official one's keys.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of this run, over the file's output_dir."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE over the file, for instance learning_rate=1e-5."),
    ] = None,
    resume: Annotated[
        bool, options.flag("--resume", help="Go on from the folder's state.")
    ] = False,
    offline: options.Offline = False,
    dry_run: Annotated[
        bool,
        options.flag("--dry-run", help="Read data, decode clips, make one step, write nothing."),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a motion module on videos, or the image model on images; prints the result."""
    render.configure(quiet=quiet, as_json=json, debug=debug)
    options.go_offline(offline)
    with importing():
        from animatediff_core.training.config_file import load_train_config, parse_override

    given = dict(parse_override(text) for text in set_ or [])
    settings = load_train_config(config, given)
    folder = output or (Path(settings.output_dir) if settings.output_dir else None)
    if folder is None:
        raise AnimateDiffError("-o is missing: which folder is this run's?")
    _run(settings, folder, resume, dry_run, offline)


def _run(config: "TrainConfig", output: Path, resume: bool, dry_run: bool, offline: bool) -> None:
    with importing():
        from animatediff_core.runs.train import Checked, Encoding, Prior, Skipped, Written, run
        from animatediff_core.training.loop import Step

    with bars() as shown:
        encoding = shown.add_task("", total=None, visible=False)
        prior = shown.add_task("", total=None, visible=False)
        steps = shown.add_task("loading", total=config.max_train_steps)
        seconds = waited = 0.0
        for event in run(config, output, resume=resume, dry_run=dry_run, offline=offline):
            if isinstance(event, Step):
                seconds, waited = seconds + event.seconds, waited + event.waited
                text = f"step {event.step} of {config.max_train_steps}"
                text += f"  loss {event.loss:.4f}  rate {event.learning_rate:.2g}"
                shown.update(steps, completed=event.step, description=text)
            elif isinstance(event, Encoding | Prior):
                task, kind = (
                    (prior, "prior image") if isinstance(event, Prior) else (encoding, "video")
                )
                text = f"{kind} {event.done} of {event.total}"
                shown.update(
                    task, visible=True, total=event.total, completed=event.done, description=text
                )
            elif isinstance(event, Skipped):
                render.note(f"skipped: {event.reason}", always=True)
            elif isinstance(event, Checked):
                megabytes, kept = event.memory / 2**20, event.kept / 2**20
                render.result(
                    f"{event.clips} clips, {event.decoded} decoded, one step: loss "
                    f"{event.loss:.4f}, peak memory {megabytes:.0f} MiB, "
                    f"of it activations kept for the backward {kept:.1f} MiB",
                    {
                        "clips": event.clips,
                        "decoded": event.decoded,
                        "loss": event.loss,
                        "memory_mib": round(megabytes),
                        "activations_mib": round(kept, 1),
                    },
                )
            elif isinstance(event, Written):
                if event.final:
                    idle = waited / seconds if seconds else 0.0
                    _tell_idle(idle)
                    render.result(
                        str(event.path), {"path": str(event.path), "idle": round(idle, 3)}
                    )
                else:
                    render.note(f"wrote {event.path}")


def _tell_idle(share: float) -> None:
    """How long the device had nothing to do, and what helps where that was long."""
    helps = "; raise data.num_workers, or set data.cache_folder" if share > 0.1 else ""
    render.note(f"{share:.0%} of the time was spent waiting for data{helps}")
