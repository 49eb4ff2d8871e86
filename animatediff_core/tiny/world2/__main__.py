"""`python -m animatediff_core.tiny.world2 build`: train world 2's family, or go on with it."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BEGAN = time.monotonic()
SAVING = 9.0
"""Seconds left for what comes after training."""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m animatediff_core.tiny.world2")
    parser.add_argument("command", choices=["build"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=7.0, help="of the whole command")
    parser.add_argument("--stage", nargs="*", help="stages, each with =SHARE of the time or not")
    parser.add_argument("--state", type=Path, default=Path("build/world2"))
    parser.add_argument("--speeds", action="store_true", help="measure drawing and encoding")
    parser.add_argument("--toy", action="store_true", help="small parts, for a test")
    parser.add_argument("--dtype", choices=["fp32", "bf16"])
    options = parser.parse_args(arguments)
    for line in _build(options):
        sys.stdout.write(f"[{time.monotonic() - BEGAN:5.0f} s] {line}\n")
        sys.stdout.flush()


def _build(options: argparse.Namespace) -> Iterator[str]:
    import torch

    from . import models
    from .stages import SHARES, TOY_RECIPES, Family, train_stage

    device = torch.device(options.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(
        options.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    toy = {"sizes": models.TOY, "recipes": TOY_RECIPES, "frames": 4} if options.toy else {}
    family = Family(
        folder=options.state,
        device=device,
        dtype=dtype,
        **toy,
    )
    shares = dict(SHARES)
    if options.stage:
        pairs = [stage.partition("=") for stage in options.stage]
        shares = {name: float(share or SHARES[name]) for name, _, share in pairs}
    yield f"{device}, {dtype}, stages {shares}"
    deadline = BEGAN + options.minutes * 60 - SAVING
    for stage, share in shares.items():
        rest = sum(list(shares.values())[list(shares).index(stage) :])
        seconds = max((deadline - time.monotonic()) * share / rest, 1.0)
        yield f"{stage}: {seconds:.0f} s"
        yield from train_stage(family, stage, seconds, speeds=options.speeds)


if __name__ == "__main__":
    main(sys.argv[1:])
