"""The one comparison of the tensors that a model needs with those of a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..errors import CheckpointError
from .files import printable
from .weight_file import Shapes

_SHOWN = 3
"""Names of each kind in a message."""


def check_tensors(
    expected: Shapes,
    found: Shapes,
    path: Path | str,
    part: str,
    advice: str,
    *,
    others_allowed: bool = False,
) -> None:
    """Raise CheckpointError unless every expected tensor is there, of its shape, and no other.

    `part` says whose tensors they are ("UNet", "v3 motion module"), `advice` what the user can
    do. With `others_allowed` a file may hold more than the model needs.
    """
    missing = [name for name in expected if name not in found]
    unknown = [] if others_allowed else [name for name in found if name not in expected]
    shared = [name for name in expected if name in found]
    misshapen = [name for name in shared if tuple(found[name]) != tuple(expected[name])]
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} of {len(expected)} tensors ({_first(missing)})")
    if unknown:
        problems.append(f"has {len(unknown)} unknown tensors ({_first(unknown)})")
    if misshapen:
        name = misshapen[0]
        problems.append(
            f"has {len(misshapen)} tensors of another shape (first {printable(name)}: "
            f"{printable(found[name])}, not {printable(expected[name])})"
        )
    if problems:
        raise CheckpointError(
            f"{path}: does not fit the {part}: it {', '.join(problems)}; {advice}"
        )


def shapes_of(tensors: nn.Module | Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's weights, or of named tensors."""
    if isinstance(tensors, nn.Module):
        tensors = tensors.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(map(printable, names[:_SHOWN]))
    return f"{shown}, …" if len(names) > _SHOWN else shown
