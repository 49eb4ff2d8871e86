"""`animatediff inject`: one folder from a base model, LoRAs and a motion module."""

from pathlib import Path
from typing import Annotated

import typer

from animatediff_core.errors import AnimateDiffError

from . import options, render


def inject(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; must be new.")],
    base: options.Base = None,
    variant: options.Variant = None,
    motion: options.Motion = None,
    motion_version: options.MotionVersion = None,
    vae: options.Vae = None,
    lora: options.Lora = None,
    motion_lora: options.MotionLora = None,
    embedding: options.Embedding = None,
    offline: options.Offline = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Merge LoRAs into a base model and put a motion module beside it; prints the folder.

    `generate --base FOLDER` and stock diffusers' AnimateDiffPipeline both open it. diffusers
    normalises motion over all frames at once, so its clips differ from ours.
    """
    render.configure(quiet=quiet, as_json=json, debug=debug)
    if base is None:
        raise AnimateDiffError("--base is missing: which model should be made to move?")
    options.go_offline(offline)
    from animatediff_core.runs import inject as use
    from animatediff_core.runs.model import Parts

    planned = use.plan(
        Parts(
            base=base,
            variant=variant,
            motion=motion,
            motion_version=motion_version,
            vae=vae,
            loras=options.adapters(lora),
            motion_loras=options.adapters(motion_lora),
            embeddings=tuple(embedding or ()),
        ),
        output,
        offline=offline,
    )
    found = planned.found
    record = {"folder": str(output), "base": str(found.base), "motion": str(found.motion)}
    if not dry_run:
        use.run(planned, offline=offline)
    render.note(f"{found.base} + {found.motion} ({planned.motion.version})")
    render.result(str(output), record)
