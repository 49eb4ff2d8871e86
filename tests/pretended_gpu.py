"""A pretended GPU: tensors that say they are on CUDA, and are computed on the CPU.

An operation over tensors of two devices fails as it does on a real GPU, and so does one that draws
with a generator of another device; each read that a real GPU would have to be waited for is noted.
"""

import ctypes
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
GPU = torch.device("cuda:0")
_MOVES = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default}
_TAKE_INDICES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""Operations over tensors of several devices; indices may be on the CPU."""
_TAKE_NUMBERS = {
    "add", "sub", "rsub", "mul", "div", "pow", "where", "fill_", "eq", "ne", "lt", "le", "gt", "ge",
    "maximum", "minimum", "add_", "sub_", "mul_", "div_",
}  # fmt: skip
"""Operations of which one input may be a number, a tensor without axes, on the CPU."""
_READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
"""Operations whose result the CPU needs."""
_C10 = str(Path(torch.__file__).parent / "lib" / "libc10.so")
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
_MATH = 0
"""The kernel of scaled_dot_product_attention that is made of plain operations."""


class OnGPU(Tensor):
    """A tensor that says it is on the GPU."""

    held: Tensor
    """Its numbers, on the CPU."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGPU":
        made: OnGPU = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=GPU, requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"on the GPU: {self.held}"

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].held = args[1].held
        if function is Tensor.tolist:
            return args[0].cpu().tolist()
        if function is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype, device=GPU)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class PretendedGPU(TorchDispatchMode):
    """While it lasts, there is a GPU; `waits` are the places where it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if _waits(function, args, kwargs or {}):
            self.waits.append(_place())
        return _run(function, args, kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """torch neither looks for a driver nor for a device while it lasts."""
    with pytest.MonkeyPatch.context() as patch, _cuda_guard():
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        with _tensors_move_visibly(), PretendedGPU() as gpu:
            yield gpu


@contextmanager
def _tensors_move_visibly() -> Iterator[None]:
    """A tensor of Python's numbers is made on the CPU, and what moves it to a device is seen."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


@contextmanager
def _cuda_guard() -> Iterator[None]:
    """What torch's C++ part switches devices with: a build for the CPU alone has none for CUDA, one
    for CUDA asks its driver. The CPU's, which does nothing, stands in its place."""
    try:
        guards = (ctypes.c_void_p * 2).in_dll(ctypes.CDLL(_C10), _GUARDS)
    except (OSError, ValueError):
        pytest.skip("this build of torch keeps its device guards in another place")
    cpu, before = guards
    guards[1] = cpu
    try:
        yield
    finally:
        guards[1] = before


def on_cpu(tensor: Tensor) -> Tensor:
    """The numbers of a tensor wherever it says that it is."""
    return tensor.held if isinstance(tensor, OnGPU) else tensor


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation on the CPU; what comes of it is on the GPU if what went in was."""
    given = list(_tensors([*args, *kwargs.values()]))
    _check_devices(function, args, given, kwargs)
    if function is aten._fused_sdp_choice.default:
        return _MATH
    asked = kwargs.get("device")
    there = any(isinstance(one, OnGPU) for one in given)
    if asked is not None:
        there = _there(asked)
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if function is aten._to_copy.default:
        kwargs = {**kwargs, "non_blocking": False}
    pinned = kwargs.get("pin_memory")
    kwargs = {name: one for name, one in kwargs.items() if name != "pin_memory"}
    held = {name: _each(on_cpu, one) for name, one in kwargs.items()}
    out = function(*_each(on_cpu, args), **held)
    if not there:
        if pinned:
            out.pinned = True
        return out
    shown = _each(OnGPU, out)
    if function._schema.is_mutable:
        return return_and_correct_aliasing(function, args, kwargs, shown)
    return shown


def _tensors(given: Iterable[Any]) -> Iterator[Tensor]:
    for one in given:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (list, tuple)):
            yield from _tensors(one)


def _each(change: Callable[[Tensor], Tensor], given: Any) -> Any:
    """The same with every tensor changed."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, (list, tuple)):
        return type(given)([_each(change, one) for one in given])
    return given


def _check_devices(
    function: Any, args: Any, given: Sequence[Tensor], kwargs: dict[str, Any]
) -> None:
    """As torch's kernels: a CPU tensor beside CUDA ones must have no axes."""
    if function in _TAKE_INDICES:
        given = [args[0], *(one for one in args[2:] if isinstance(one, Tensor))]
    if function not in _MOVES:
        free = function._schema.name.removeprefix("aten::") in _TAKE_NUMBERS
        counted = (one for one in given if isinstance(one, OnGPU) or one.ndim or not free)
        where = {one.device.type for one in counted}
        if len(where) > 1:
            raise RuntimeError(f"{function}: its tensors are on two devices")
    if (generator := kwargs.get("generator")) is not None:
        asked = kwargs.get("device") or next((one.device for one in given), "cpu")
        if torch.device(asked).type != generator.device.type:
            raise RuntimeError(f"{function}: its generator is on {generator.device}")


def _waits(function: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the CPU does nothing until the GPU has come to this operation."""
    if function is aten._to_copy.default or function is aten.copy_.default:
        to = kwargs.get("device") or args[0].device
        given = args[-1] if function is aten._to_copy.default else args[1]
        freely = kwargs.get("non_blocking") or True in args[2:3]
        follows = freely and (_there(to) or hasattr(args[0], "pinned"))
        return _there(to) != isinstance(given, OnGPU) and not follows
    if function in _TAKE_INDICES:
        there = isinstance(args[0], OnGPU)
        return there and any(_stops(one) for one in args[1] if one is not None)
    return function in _READS and isinstance(args[0], OnGPU)


def _there(device: Any) -> bool:
    return torch.device(device).type == "cuda"


def _stops(index: Tensor) -> bool:
    """Whether it is moved to the GPU, or its true places are counted there."""
    return not isinstance(index, OnGPU) or index.dtype == torch.bool


def _place() -> str:
    """The line of this project from which an operation was asked for."""
    stack = traceback.extract_stack()
    ours = [f for f in stack if "animatediff_core" in f.filename] or stack
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}"
