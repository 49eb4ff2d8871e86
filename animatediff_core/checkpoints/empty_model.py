"""Models built without weights, and filled with those of a file, tensor by tensor."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.clip import CLIPPreTrainedModel

from ..errors import CheckpointError


def without_weights(build: Callable[[Any], Any], config: Any) -> Any:
    """A model whose weights take no memory and no time."""
    with torch.device("meta"):
        model = build(config)
    for part in model.modules():
        if (unset := part._buffers.get("position_ids")) is not None:  # CLIP's, in no file
            part.position_ids = torch.arange(unset.shape[-1]).expand(1, -1)
    return model


def fill(
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype | None,
    source: str | Path,
) -> None:
    """Give a model without weights its tensors, which were compared with it before.

    They are converted one by one as they come, so that no second copy is in memory; with the
    dtype None each stays as it is, pages of its file. Those of CLIP are copied out of the file:
    they are not packed, and the matrix kernels round by how their memory is aligned, which differs
    from file to file.
    """
    copy = isinstance(model, CLIPPreTrainedModel)
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{source}: is of a quantised model; use its fp32 or fp16 weights"
            )
        converted[name] = tensor.to(dtype or tensor.dtype, copy=copy)
        del tensor
    model.load_state_dict(converted, assign=True)


def emptied(tensors: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """The items of a dictionary, which no longer holds those that were taken."""
    for name in list(tensors):
        yield name, tensors.pop(name)
