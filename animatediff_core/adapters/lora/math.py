"""The change of one weight that a LoRA layer stands for, in fp32.

LoRA `up @ down` and LoCon's Tucker form with a middle; LoHa, the elementwise product of two such
(Hadamard); LoKr, the Kronecker product of a small and a large factor (LyCORIS, arXiv 2309.14859);
a plain difference. Each but the last is scaled by alpha / rank. DoRA (arXiv 2402.09353) gives the
changed weight a learned length along one axis.

Legend: o i output and input channels, k l kernel, r s ranks.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import CheckpointError

_BESIDE = ("diff_b", "dora_scale", "magnitude")
"""Roles that are no part of the weight's change."""


@dataclass
class Delta:
    """One layer of a LoRA file."""

    factors: dict[str, Tensor] = field(default_factory=dict)
    """By role: up, down, mid; hada_w1_a …; lokr_w1 …; diff; diff_b for the bias; dora_scale."""
    alpha: float | None = None

    @property
    def weight_roles(self) -> list[str]:
        """The factors of the weight's change."""
        return [role for role in self.factors if role not in _BESIDE]

    @property
    def is_dora(self) -> bool:
        """Whether the changed weight gets a learned length."""
        return "dora_scale" in self.factors or "magnitude" in self.factors

    def lacks(self) -> str | None:
        """The role without which this layer cannot be computed, or None."""
        have = set(self.weight_roles)
        if any(role.startswith("hada") for role in have):
            wanted = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]
            if "hada_t1" in have or "hada_t2" in have:
                wanted += ["hada_t1", "hada_t2"]
        elif any(role.startswith("lokr") for role in have):
            wanted = [
                part
                for role in ("lokr_w1", "lokr_w2")
                for part in ([role] if role in have else [f"{role}_a", f"{role}_b"])
            ]
        elif "diff" in have or ("diff_b" in self.factors and not have):
            wanted = []
        else:
            wanted = ["up", "down"]
        return next((role for role in wanted if role not in have), None)

    def changes_nothing(self) -> bool:
        """Whether a factor is all zeros, as an untrained up matrix is."""
        if self.is_dora or ("diff_b" in self.factors and bool(self.factors["diff_b"].any())):
            return False
        return not all(bool(self.factors[role].any()) for role in self.weight_roles or ["diff_b"])


def product(delta: Delta) -> Tensor:
    """The change of the weight, o i or o i k l (1 x 1 kernels may be left out), not yet scaled
    by the user's scale."""
    f = {role: delta.factors[role].float() for role in delta.weight_roles}
    if "diff" in f:
        return f["diff"]
    if "hada_w1_a" in f:
        change = _tucker(f, "hada_w1_a", "hada_w1_b", "hada_t1") * _tucker(
            f, "hada_w2_a", "hada_w2_b", "hada_t2"
        )
        return change * _alpha_scale(delta, f["hada_w1_b"].shape[0])
    if any(role.startswith("lokr") for role in f):
        return _kronecker(delta, f)
    scale = _alpha_scale(delta, f["down"].shape[0])
    up, down = f["up"], f["down"]
    if "mid" in f:
        change = torch.einsum("or,rskl,si->oikl", up.flatten(1), f["mid"], down.flatten(1))
    elif down.ndim == 4 and down.shape[2:] != (1, 1):
        change = torch.einsum("or,rikl->oikl", up.flatten(1), down)
    else:
        change = up.flatten(1) @ down.flatten(1)
    return change * scale


def changed_weight(weight: Tensor, delta: Delta, scale: float) -> Tensor:
    """The weight with `scale` times the layer's change, in fp32.

    With DoRA the difference between the old weight and the trained one is scaled: 0 gives the old
    weight, 1 the trained one.
    """
    old = weight.float()
    change = product(delta).view(weight.shape).to(weight.device)
    if not delta.is_dora:
        return old + scale * change
    return old + scale * (_with_length(old + change, delta) - old)


def _with_length(weight: Tensor, delta: Delta) -> Tensor:
    """A weight whose rows (or columns) have the lengths that DoRA learned.

    LyCORIS' dora_scale is 1 i 1 1 for each input channel, or o 1 1 1; PEFT's magnitude is o, or
    1 o 1 1 for a convolution.
    """
    role = "dora_scale" if "dora_scale" in delta.factors else "magnitude"
    length = delta.factors[role].float().to(weight.device)
    by_input = length.ndim > 1 and length.shape[0] == 1 and weight.shape[0] != 1
    if role == "magnitude" and length.ndim == 4:
        by_input = False
    axis = 1 if by_input else 0
    others = [dimension for dimension in range(weight.ndim) if dimension != axis]
    norm: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    if length.numel() != norm.numel():
        raise CheckpointError(f"DoRA's {role} has {length.numel()} lengths, not {norm.numel()}")
    return weight * (length.view(norm.shape) / (norm + torch.finfo(torch.float32).eps))


def _alpha_scale(delta: Delta, rank: int) -> float:
    """alpha / rank; 1 if the file has no alpha."""
    return 1.0 if delta.alpha is None else delta.alpha / rank


def _tucker(f: dict[str, Tensor], a: str, b: str, core: str) -> Tensor:
    """a @ b, or with a core: r s k l, s i, r o -> o i k l."""
    if core in f:
        return torch.einsum("rskl,si,ro->oikl", f[core], f[b], f[a])
    return f[a] @ f[b]


def _kronecker(delta: Delta, f: dict[str, Tensor]) -> Tensor:
    """w1 ⊗ w2, each whole or a product; alpha counts only where one is a product."""
    small = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
    large = f["lokr_w2"] if "lokr_w2" in f else _tucker(f, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    ranks = [f[role].shape[0] for role in ("lokr_w1_b", "lokr_w2_b") if role in f]
    if large.ndim == 4:
        small = small[:, :, None, None]
    scale = _alpha_scale(delta, ranks[-1]) if ranks else 1.0
    return torch.kron(small, large.contiguous()) * scale
