"""`--compile`: the animated model as torch.compile makes it, as one graph.

Hooks, motion modules, residuals and IP-Adapters are in it; windows and guidance stay outside. What
was compiled lies in a folder of the user's cache, so that it is made once for a machine, a build of
torch and a size.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import SurroundingsError

VARIANTS = 256
"""Sizes and settings that the model is compiled for before it runs plainly."""
_PLACE = "TORCHINDUCTOR_CACHE_DIR"


def compiled(forward: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """A model's forward, which is compiled when it is first called with inputs of a size."""
    from torch._dynamo import config

    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, max(getattr(config, limit), VARIANTS))
    done: Callable[..., Any] = torch.compile(
        forward, fullgraph=True, dynamic=False, backend=backend
    )
    return done


@contextmanager
def compiling_explained(compiled: bool) -> Iterator[None]:
    """Within it what torch.compile fails at is a SurroundingsError of one sentence."""
    if not compiled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        said = str(cause).strip().partition("\n")[0]
        raise SurroundingsError(
            f"--compile: torch cannot compile the model here ({said}); leave --compile out"
        ) from error


def prepare_compiling(device: torch.device) -> None:
    """See that blocks can be compiled here, and that they are kept for the next run.

    Raises SurroundingsError without a compiler or a place to keep its results.
    """
    if device.type not in ("cuda", "cpu"):
        raise SurroundingsError(f"--compile does not run on {device.type}; leave it out")
    if missing := _missing(device):
        raise SurroundingsError(f"--compile needs {missing}; install it, or leave --compile out")
    named = os.environ.get(_PLACE)
    if named is None or named.startswith(str(Path(tempfile.gettempdir()) / "torchinductor_")):
        _keep_results()


def _keep_results() -> None:
    """In the user's cache, where torch would keep them in the temporary folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(caches) / "animatediff" / "compiled"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SurroundingsError(
            f"--compile keeps its results in {place}, which cannot be written to "
            f"({error.strerror}); name another folder in {_PLACE}"
        ) from error
    os.environ[_PLACE] = str(place)


def _missing(device: torch.device) -> str:
    """What the compiler of a device lacks on this machine, or nothing."""
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
