"""`--compile`: torch.compile makes the animated model's forward, as one graph.

The graph holds hooks, motion modules, residuals and IP-Adapters; windows and guidance stay outside.
The results lie in a folder of the user's cache: torch compiles once for a machine, a build of torch
and a size.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import AnimateDiffError, MachineError
from ..media.atomic import user_cache
from ..motion import AnimatedUNet
from ..planning.memory import MemorySettings

VARIANTS = 256
"""Sizes and settings that the model is compiled for before it runs plainly."""
_PLACE = "TORCHINDUCTOR_CACHE_DIR"


def compile_model(
    animated: AnimatedUNet, backend: str | Callable[..., Any] = "inductor"
) -> Callable[[], None]:
    """Compile a model's forward, once for each size of its inputs.

    Returns the function that undoes it.
    """
    from torch._dynamo import config

    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, max(getattr(config, limit), VARIANTS))
    plain = animated.__dict__.get("forward")
    animated.__dict__["forward"] = torch.compile(
        animated.forward, fullgraph=True, dynamic=False, backend=backend
    )

    def undo() -> None:
        del animated.__dict__["forward"]
        if plain is not None:
            animated.__dict__["forward"] = plain

    return undo


@contextmanager
def compiling_explained(compiled: bool) -> Iterator[None]:
    """Turn the failures of torch.compile into a MachineError of one sentence."""
    if not compiled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        said = str(cause).strip().partition("\n")[0]
        raise MachineError(
            f"--compile: torch cannot compile the model here ({said}); leave --compile out"
        ) from error


def check_compiling(device: torch.device, memory: MemorySettings) -> None:
    """See that a model can be compiled here, and that the results stay for the next run.

    Raises AnimateDiffError if the weights are offloaded, and MachineError without a compiler
    or a folder for its results.
    """
    if memory.offload:
        raise AnimateDiffError(
            "--compile keeps the weights on the GPU and --low-vram does not; leave one of them out"
        )
    if device.type not in ("cuda", "cpu"):
        raise MachineError(f"--compile does not run on {device.type}; leave it out")
    if missing := _missing(device):
        raise MachineError(f"--compile needs {missing}; install it, or leave --compile out")
    named = os.environ.get(_PLACE)
    if named is None or named.startswith(str(Path(tempfile.gettempdir()) / "torchinductor_")):
        _keep_results()


def _keep_results() -> None:
    """Have torch store its results in the user's cache, not in the temporary folder."""
    place = user_cache() / "compiled"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"--compile keeps its results in {place}, which cannot be written to "
            f"({error.strerror}); name another folder in {_PLACE}"
        ) from error
    os.environ[_PLACE] = str(place)


def _missing(device: torch.device) -> str:
    """The part of a device's compiler that this machine lacks, or nothing."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if device.type == "cuda" and not has_triton():
        return "Triton, which comes with torch's builds for CUDA"
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        return "a C++ compiler such as g++"
    return ""
