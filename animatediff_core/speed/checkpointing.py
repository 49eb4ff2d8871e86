"""Gradient checkpointing: a block keeps its inputs only, and runs again when its gradient is due.

diffusers' own recomputes the ResNets alone; here the spatial and the temporal transformers are
recomputed as well, which hold nearly everything that a backward needs (arXiv 1604.06174).

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features, e features of time.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..motion import AnimatedUNet
from ..motion.module import AS_TRAINED, Positions, TemporalTransformer


def recompute_blocks(
    model: AnimatedUNet | UNet2DConditionModel | ControlNetModel,
) -> Callable[[], None]:
    """Have all blocks of a loaded model recomputed in the backward; the gradients stay the same.

    Calls without gradients are not touched. What is returned undoes it, and so does `deflate`.
    """
    animated = model if isinstance(model, AnimatedUNet) else None
    changed = []
    for module in model.modules():
        kind = _KINDS.get(type(module))
        if kind is not None:
            module.__dict__["forward"] = kind(module, animated).forward
            changed.append(module)

    def undo() -> None:
        while changed:
            changed.pop().__dict__.pop("forward", None)

    if animated is not None:
        animated.at_deflate(undo)
    return undo


@dataclass
class _Recomputed:
    module: nn.Module
    animated: AnimatedUNet | None

    def run(self, *inputs: Any) -> Any:
        """The module's own forward, now and again."""
        forward = type(self.module).forward
        if not torch.is_grad_enabled():
            return forward(self.module, *inputs)
        return checkpoint(
            forward, self.module, *inputs, use_reentrant=False, context_fn=self._contexts
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around the first run and around the second, when the call in progress is over."""
        again = nullcontext() if self.animated is None else self.animated.call_again()
        return nullcontext(), again


class _Resnet(_Recomputed):
    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Any:
        """input_tensor: (b f) c h w; temb: (b f) e."""
        return self.run(input_tensor, temb)


class _Spatial(_Recomputed):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """hidden_states: (b f) c h w; encoder_hidden_states: (b f) n d. As diffusers' own."""
        return self.run(
            hidden_states, encoder_hidden_states, timestep, added_cond_kwargs, class_labels,
            cross_attention_kwargs, attention_mask, encoder_attention_mask, return_dict,
        )  # fmt: skip


class _Temporal(_Recomputed):
    def forward(
        self,
        features: Tensor,
        frames: int,
        strength: float = 1.0,
        positions: Positions = AS_TRAINED,
    ) -> Any:
        """features: (b f) c h w."""
        return self.run(features, frames, strength, positions)


_KINDS: dict[type, type[_Resnet] | type[_Spatial] | type[_Temporal]] = {
    ResnetBlock2D: _Resnet,
    Transformer2DModel: _Spatial,
    TemporalTransformer: _Temporal,
}


@dataclass
class Kept:
    """What a graph holds for its backward."""

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
