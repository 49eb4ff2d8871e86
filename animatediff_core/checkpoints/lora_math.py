"""The change of one weight that a LoRA layer stands for, in fp32.

LoRA `up @ down` and LoCon's Tucker form with a middle; LoHa, the elementwise product of two such
(Hadamard); LoKr, the Kronecker product of a small and a large factor (LyCORIS, arXiv 2309.14859);
a plain difference. Each but the last is scaled by alpha / rank.

Legend: o i output and input channels, k l kernel, r s ranks.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Delta:
    """One layer of a LoRA file."""

    factors: dict[str, Tensor] = field(default_factory=dict)
    """By role: up, down, mid; hada_w1_a …; lokr_w1 …; diff."""
    alpha: float | None = None

    def lacks(self) -> str | None:
        """The role without which this layer cannot be computed, or None."""
        have = self.factors.keys()
        if any(role.startswith("hada") for role in have):
            wanted = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]
        elif any(role.startswith("lokr") for role in have):
            wanted = [
                part
                for one in ("lokr_w1", "lokr_w2")
                for part in ([one] if one in have else [f"{one}_a", f"{one}_b"])
            ]
        else:
            wanted = [] if "diff" in have else ["up", "down"]
        return next((role for role in wanted if role not in have), None)


def product(delta: Delta) -> Tensor:
    """The change of the weight, o i or o i k l (1 x 1 kernels may be left out), not yet scaled
    by the user's scale."""
    f = {role: tensor.float() for role, tensor in delta.factors.items()}
    if "diff" in f:
        return f["diff"]
    if "hada_w1_a" in f:
        change = _tucker(f, "hada_w1_a", "hada_w1_b", "hada_t1") * _tucker(
            f, "hada_w2_a", "hada_w2_b", "hada_t2"
        )
        return change * _factor(delta, f["hada_w1_b"].shape[0])
    if any(role.startswith("lokr") for role in f):
        return _kronecker(delta, f)
    factor = _factor(delta, f["down"].shape[0])
    up, down = f["up"], f["down"]
    if "mid" in f:
        change = torch.einsum("or,rskl,si->oikl", up.flatten(1), f["mid"], down.flatten(1))
    elif down.ndim == 4 and down.shape[2:] != (1, 1):
        change = torch.einsum("or,rikl->oikl", up.flatten(1), down)
    else:
        change = up.flatten(1) @ down.flatten(1)
    return change * factor


def _factor(delta: Delta, rank: int) -> float:
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
    return torch.kron(small, large.contiguous()) * (_factor(delta, ranks[-1]) if ranks else 1.0)
