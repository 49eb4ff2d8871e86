"""Gradient checkpointing: a block keeps its inputs only, and runs again when its gradient is due.

diffusers' own recomputes the ResNets alone; here the spatial and the temporal transformers are
recomputed as well, which hold nearly everything that a backward needs (arXiv 1604.06174).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..motion import AnimatedUNet
from ..motion.module import TemporalTransformer


def recompute_blocks(
    model: AnimatedUNet | UNet2DConditionModel | ControlNetModel,
) -> Callable[[], None]:
    """Have all blocks of a loaded model recomputed in the backward; the gradients stay the same.

    Calls without gradients are not touched. What is returned undoes it, and so does `deflate`.
    """
    animated = model if isinstance(model, AnimatedUNet) else None
    changed = [module for module in model.modules() if type(module) in _KINDS]
    for module in changed:
        module.__dict__["forward"] = _recomputed(module, animated)

    def undo() -> None:
        while changed:
            changed.pop().__dict__.pop("forward", None)

    if animated is not None:
        animated.at_deflate(undo)
    return undo


_KINDS = (ResnetBlock2D, Transformer2DModel, TemporalTransformer)


def _recomputed(module: nn.Module, animated: AnimatedUNet | None) -> Callable[..., Any]:
    """The module's own forward, run now and again in the backward."""
    plain = partial(type(module).forward, module)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around the first run and around the second, when the call in progress is over."""
        return nullcontext(), nullcontext() if animated is None else animated.call_again()

    def forward(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs, **named)
        return checkpoint(plain, *inputs, use_reentrant=False, context_fn=contexts, **named)

    return forward


@dataclass
class Kept:
    """The tensors that a graph holds for its backward."""

    tensors: dict[int, int] = field(default_factory=dict)
    """Bytes by place in memory: what is held twice counts once."""

    @property
    def num_bytes(self) -> int:
        """All of them."""
        return sum(self.tensors.values())


@contextmanager
def counting_kept(weights: Iterable[Tensor]) -> Iterator[Kept]:
    """Counts what forwards within it keep for their backward, besides these weights.

    The backward must follow: it alone sets free what the hooks of torch hold.
    """
    kept = Kept()
    own = {_place(weight) for weight in weights}

    def note(tensor: Tensor) -> Tensor:
        if _place(tensor) not in own:
            kept.tensors[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
