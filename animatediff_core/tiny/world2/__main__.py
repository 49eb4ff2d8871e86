"""`python -m animatediff_core.tiny.world2`: build world 2's family, measure it, or export it."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .family import Family

BEGAN = time.monotonic()
SAVING = 9.0
"""Seconds left for what comes after training."""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m animatediff_core.tiny.world2")
    parser.add_argument("command", choices=[*_COMMANDS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=7.0, help="of the whole command")
    parser.add_argument("--stage", nargs="*", help="stages, each with =SHARE of the time or not")
    parser.add_argument("--state", type=Path, default=Path("build/world2"))
    parser.add_argument("--speeds", action="store_true", help="measure drawing and encoding")
    parser.add_argument("--toy", action="store_true", help="small parts, for a test")
    parser.add_argument("--dtype", choices=["fp32", "bf16"])
    parser.add_argument("--clips", type=int, default=64, help="to measure")
    parser.add_argument("--steps", type=int, default=20, help="of sampling")
    parser.add_argument("--output", type=Path, help="folder to export to")
    options = parser.parse_args(arguments)
    for line in _COMMANDS[options.command](options):
        sys.stdout.write(f"[{time.monotonic() - BEGAN:5.0f} s] {line}\n")
        sys.stdout.flush()


def _family(options: argparse.Namespace) -> "Family":
    import torch

    from . import models
    from .family import Family

    device = torch.device(options.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(
        options.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sizes = models.TOY if options.toy else models.FULL
    return Family(folder=options.state, device=device, dtype=dtype, sizes=sizes)


def _measure(options: argparse.Namespace) -> Iterator[str]:
    from .measure import measure

    yield from measure(_family(options), options.clips, options.steps)


def _export(options: argparse.Namespace) -> Iterator[str]:
    from .export import export

    export(_family(options), options.output)
    yield f"written: {options.output}"


def _build(options: argparse.Namespace) -> Iterator[str]:
    from .stages import SHARES, train_stage

    family = _family(options)
    shares = dict(SHARES)
    if options.stage:
        pairs = [stage.partition("=") for stage in options.stage]
        shares = {name: float(share or SHARES[name]) for name, _, share in pairs}
    yield f"{family.device}, {family.dtype}, stages {shares}"
    deadline = BEGAN + options.minutes * 60 - SAVING
    for stage, share in shares.items():
        rest = sum(list(shares.values())[list(shares).index(stage) :])
        seconds = max((deadline - time.monotonic()) * share / rest, 1.0)
        yield f"{stage}: {seconds:.0f} s"
        yield from train_stage(family, stage, seconds, speeds=options.speeds)


_COMMANDS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "build": _build,
    "measure": _measure,
    "export": _export,
}

if __name__ == "__main__":
    main(sys.argv[1:])
