"""CUDA graphs: a call of the animated model is captured once for its shapes, then replayed.

A replay costs the host one launch where the call costs it more than a thousand. The arguments of a
call are copied into the tensors that were captured. The first call of a kind runs plainly, which
warms up every kernel; the second one is captured. What cannot be captured always runs plainly.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ..motion import AnimatedUNet, Conditions

log = logging.getLogger(__name__)
_GRAPHS = 8
"""Kinds of calls that are remembered."""


@dataclass
class _Captured:
    """One graph, with the tensors that it reads and the one that it writes."""

    inputs: list[Tensor]
    graph: Any
    output: Tensor
    sources: list[tuple[Tensor, int | None]]
    """The tensors that the inputs were last copied from, with their versions."""

    def replay(self, tensors: list[Tensor]) -> Tensor:
        for number, (own, tensor) in enumerate(zip(self.inputs, tensors, strict=True)):
            version = None if tensor.is_inference() else tensor._version
            last, seen = self.sources[number]
            if tensor is not last or version is None or version != seen:
                own.copy_(tensor)
                self.sources[number] = tensor, version
        self.graph.replay()
        return self.output.clone()


class Graphs:
    """The graphs of one model."""

    def __init__(self, model: AnimatedUNet) -> None:
        self.call = partial(type(model).forward, model)
        self.known: OrderedDict[Hashable, _Captured | None] = OrderedDict()
        """By kind of call; None after the first call of a kind."""
        self.failed: set[Hashable] = set()
        self.pool: Any = None
        self._state: Hashable = None
        self._attentions = [m for m in model.modules() if isinstance(m, Attention)]
        self._hooks = [
            hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)
        ]
        self._parameters = list(model.parameters())

    def __call__(
        self, sample: Tensor, time: Tensor, text: Tensor, conditions: Conditions | None
    ) -> Tensor:
        """Call the model, by a replay where the call was captured."""
        tensors, settings = _taken_apart(conditions)
        tensors = [sample, time, text, *tensors]
        key = _key(tensors, settings)
        if key is None or key in self.failed:
            return self.call(sample, time, text, conditions)
        self._forget_what_changed()
        if key not in self.known:
            self.known[key] = None
            while len(self.known) > _GRAPHS:
                self.known.popitem(last=False)
            return self.call(sample, time, text, conditions)
        self.known.move_to_end(key)
        captured = self.known[key] or self._capture(key, tensors, conditions)
        return captured.replay(tensors) if captured else self.call(sample, time, text, conditions)

    def forget(self) -> None:
        """Give back all graphs and their memory."""
        self.known.clear()
        self.pool = None

    def _capture(
        self, key: Hashable, tensors: list[Tensor], conditions: Conditions | None
    ) -> _Captured | None:
        inputs = [tensor.clone() for tensor in tensors]
        own = _put_together(conditions, inputs[3:])
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
                output = self.call(inputs[0], inputs[1], inputs[2], own)
        except RuntimeError as error:
            log.debug("no CUDA graph for this call: %s", error)
            self.failed.add(key)
            self.known.pop(key, None)
            return None
        captured = _Captured(inputs, graph, output, [(tensor, None) for tensor in inputs])
        self.known[key] = captured
        return captured

    def _forget_what_changed(self) -> None:
        """Graphs hold addresses of weights and settings of processors as they were."""
        state = (
            tuple((a.processor, _scale(a.processor)) for a in self._attentions),
            sum(map(len, self._hooks)),
            sum(parameter.data_ptr() for parameter in self._parameters),
            sum(p._version for p in self._parameters if p.ndim == 1 and not p.is_inference()),
        )
        if state != self._state:
            self.forget()
            self._state = state


def _scale(processor: Any) -> Hashable:
    scale = getattr(processor, "scale", None)
    return tuple(scale) if isinstance(scale, list) else scale


def _taken_apart(conditions: Conditions | None) -> tuple[list[Tensor], dict[str, Any]]:
    """The tensors of a call's conditions in the order of their fields, and all else."""
    tensors: list[Tensor] = []
    settings: dict[str, Any] = {}
    for one in fields(conditions) if conditions is not None else ():
        value = getattr(conditions, one.name)
        if isinstance(value, Tensor):
            tensors.append(value)
            settings[one.name] = Tensor
        elif isinstance(value, tuple) and value and all(isinstance(t, Tensor) for t in value):
            tensors += value
            settings[one.name] = Tensor, len(value)
        else:
            settings[one.name] = tuple(value.items()) if isinstance(value, Mapping) else value
    return tensors, settings


def _put_together(conditions: Conditions | None, tensors: list[Tensor]) -> Conditions | None:
    """The conditions with other tensors in their places."""
    rest = list(tensors)
    changes: dict[str, Any] = {}
    for one in fields(conditions) if conditions is not None else ():
        value = getattr(conditions, one.name)
        if isinstance(value, Tensor):
            changes[one.name] = rest.pop(0)
        elif isinstance(value, tuple) and value and all(isinstance(t, Tensor) for t in value):
            changes[one.name] = tuple(rest.pop(0) for _ in value)
    return None if conditions is None else replace(conditions, **changes)


def _key(tensors: list[Tensor], settings: dict[str, Any]) -> Hashable | None:
    """The key that calls of one graph share, or None where a setting is unknown."""
    shapes = tuple((tuple(t.shape), t.dtype, t.device) for t in tensors)
    key = shapes, tuple(settings.items())
    try:
        hash(key)
    except TypeError:
        return None
    return key
