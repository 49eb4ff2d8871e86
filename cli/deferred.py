"""A quick start: modules that libraries import and hardly a run uses are executed when first used.

A command starts two seconds sooner for it. Only this program's own process does so, never one that
uses the core as a library.
"""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class _Deferral:
    """Parts of a module that can be used before it is executed."""

    parts: tuple[str, ...] | None = ()
    """Modules in it that need not the whole; None is all of them."""
    functions: tuple[str, ...] = ()
    """They fetch the module when they are called."""
    marks: tuple[str, ...] = ()
    """Decorators that mark a function for a compiler; until the module is executed they do
    nothing."""


MODULES = {
    "av": _Deferral(),
    "diffusers.models.transformers": _Deferral(parts=None),
    "scipy.integrate": _Deferral(),
    "scipy.optimize": _Deferral(functions=("linear_sum_assignment",)),
    "scipy.stats": _Deferral(),
    "torch._dynamo": _Deferral(
        parts=("_trace_wrapped_higher_order_op",),
        marks=("allow_in_graph", "assume_constant_result", "disable"),
    ),
    "transformers.models": _Deferral(parts=None),
}
_LOCK = RLock()
"""Held while a module is executed; other threads that want it wait."""


class _Deferred(ModuleType):
    """Becomes the module that it represents when a name of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = MODULES.get(self.__name__, _Deferral())
        if name in known.marks:
            return _unmarked
        if name in known.functions:
            return partial(_call, self, name)
        return getattr(_loaded(self), name)


class _Begun(ModuleType):
    """A module while it is executed, or that has put another in its place."""

    def __getattr__(self, name: str) -> Any:
        with _LOCK:
            whole = sys.modules[self.__name__]
        if whole is self and type(self) is _Begun:
            raise AttributeError(f"module {self.__name__!r} has no {name!r} yet")
        return getattr(whole, name)


def _loaded(module: ModuleType) -> ModuleType:
    """The module that a deferred one represents, executed now unless it has been."""
    with _LOCK:
        if type(module) is _Deferred:
            _execute(module)
        return sys.modules[module.__name__]


def _execute(module: ModuleType) -> None:
    assert module.__spec__ is not None
    assert module.__spec__.loader is not None
    module.__class__ = _Begun
    try:
        module.__spec__.loader.exec_module(module)
    except BaseException:
        module.__class__ = _Deferred
        raise
    if sys.modules[module.__name__] is module:
        module.__class__ = ModuleType


def _call(module: ModuleType, name: str, *arguments: Any, **named: Any) -> Any:
    return getattr(_loaded(module), name)(*arguments, **named)


def _unmarked(function: Any = None, *_: object, **__: object) -> Any:
    """A decorator that leaves a function as it is."""
    return function if function is not None else _unmarked


class _Later(Loader):
    """Loads a module by doing nothing yet; from then on its own loader is in charge."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        module.__class__ = _Deferred


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        above, _, part = name.rpartition(".")
        whole = sys.modules.get(above)
        if isinstance(whole, _Deferred) and above in MODULES:
            parts = MODULES[above].parts
            if parts is not None and part not in parts:
                _loaded(whole)
        if name not in MODULES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


def will_compile() -> None:
    """This process compiles models: functions must be marked from the start."""
    MODULES.pop("torch._dynamo", None)


def defer_imports() -> None:
    """From now on, in this process, these modules wait until something of them is used."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def importing() -> Iterator[None]:
    """Imports leave no garbage: Python looks for none meanwhile, nor later among what they made."""
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # without a new module there is nothing to keep
            gc.freeze()
        gc.enable()
