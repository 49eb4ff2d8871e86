"""The changed weight that a LoRA layer stands for, in fp32.

LoRA `up @ down` and LoCon's Tucker form with a middle; LoHa, the elementwise product of two such
(Hadamard); LoKr, the Kronecker product of a small and a large factor (LyCORIS, arXiv 2309.14859);
GLoRA, which also multiplies the weight (arXiv 2306.07967); a plain difference; IA3, a factor by
channel (arXiv 2205.05638). Low-rank forms are scaled by alpha / rank. DoRA (arXiv 2402.09353) gives
the changed weight a learned length along one axis. OFT and BOFT (arXiv 2306.07280, 2311.06243)
rotate the weight's outputs in blocks, BOFT in several stages.

Legend: o i output and input channels, k l kernel, r s ranks, n blocks, b block size.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import CheckpointError

_BESIDE = ("diff_b", "dora_scale", "magnitude", "rescale")
"""Roles that are no part of the weight's change."""
_FORMS = (
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    ("a1", "a2", "b1", "b2"), ("ia3",), ("oft_blocks",), ("diff",), ("diff_b",),
)  # fmt: skip
"""The roles of each form but LoRA and LoKr."""
_READ_WEIGHT = {"dora_scale", "magnitude", "a1", "ia3", "oft_blocks"}


@dataclass
class Delta:
    """One layer of a LoRA file."""

    factors: dict[str, Tensor] = field(default_factory=dict)
    """By role: up, down, mid; hada_w1_a …; lokr_w1 …; diff; diff_b for the bias; dora_scale."""
    alpha: float | None = None
    rank: int | None = None
    """Rank that PEFT names, for a LoKr of whole factors."""
    on_input: bool = False
    """Whether the channels of IA3 are the layer's inputs."""

    @property
    def weight_roles(self) -> list[str]:
        """The factors of the weight's change."""
        return [role for role in self.factors if role not in _BESIDE]

    @property
    def is_dora(self) -> bool:
        """Whether the changed weight gets a learned length."""
        return "dora_scale" in self.factors or "magnitude" in self.factors

    @property
    def reads_weight(self) -> bool:
        """Whether the change depends on the weight."""
        return not _READ_WEIGHT.isdisjoint(self.factors)

    @property
    def is_linear(self) -> bool:
        """Whether twice the scale is twice the change."""
        blocks = self.factors.get("oft_blocks")
        return blocks is None or (blocks.ndim == 3 and "rescale" not in self.factors)

    @property
    def factor_rank(self) -> int | None:
        """The rank by the shapes; None if the form has none."""
        ranks = [len(self.factors[role]) for role in _RANKS if role in self.factors]
        return ranks[-1] if ranks else self.rank

    @property
    def scale(self) -> float:
        """alpha / rank; 1 if the file has no alpha, or the form no rank."""
        rank = self.factor_rank
        return self.alpha / rank if self.alpha is not None and rank else 1.0

    def changes_nothing(self) -> bool:
        """Whether a factor is all zeros, as an untrained up matrix is."""
        if self.is_dora or "rescale" in self.factors:
            return False
        if "diff_b" in self.factors and bool(self.factors["diff_b"].any()):
            return False
        sums = [("a1", "a2"), ("b1", "b2")] if "a1" in self.factors else [self.weight_roles]
        return all(any(not bool(self.factors[role].any()) for role in one) for one in sums if one)


_RANKS = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b", "b2")
"""Roles whose first axis is the rank; of several the last counts."""


def lacking(roles: Collection[str]) -> str | None:
    """The role without which a layer of these roles cannot be computed, or None."""
    have = [role for role in roles if role not in _BESIDE or role == "diff_b"]
    wanted: list[str] = ["up", "down"]
    if any(role.startswith("lokr") for role in have):
        wanted = [
            part
            for role in ("lokr_w1", "lokr_w2")
            for part in ([role] if role in have else [f"{role}_a", f"{role}_b"])
        ]
    elif form := next((form for form in _FORMS if not set(form).isdisjoint(have)), None):
        wanted = list(form)
    if "hada_t1" in have or "hada_t2" in have:
        wanted += ["hada_t1", "hada_t2"]
    return next((role for role in wanted if role not in have), None)


def changed_weight(weight: Tensor, delta: Delta, scale: float) -> Tensor:
    """The weight with `scale` times the layer's change, in fp32.

    With DoRA the difference between the old weight and the trained one is scaled: 0 gives the old
    weight, 1 the trained one.
    """
    old = weight.float()
    if "oft_blocks" in delta.factors:
        return _rotated(old, delta, scale)
    change = product(delta, old).view(weight.shape).to(weight.device)
    if not delta.is_dora:
        return old + scale * change
    return old + scale * (_with_length(old + change, delta) - old)


def product(delta: Delta, weight: Tensor) -> Tensor:
    """The change of the weight, o i or o i k l (1 x 1 kernels may be left out), not yet scaled
    by the user's scale."""
    f = {role: delta.factors[role].float() for role in delta.weight_roles}
    if delta.reads_weight:
        f = {role: factor.to(weight.device) for role, factor in f.items()}
    if "diff" in f:
        return f["diff"]
    if "ia3" in f:
        channels = (1, -1) if delta.on_input else (-1, 1)
        return weight * f["ia3"].view(*channels, *[1] * (weight.ndim - 2))
    if "hada_w1_a" in f:
        change = _tucker(f, "hada_w1_a", "hada_w1_b", "hada_t1") * _tucker(
            f, "hada_w2_a", "hada_w2_b", "hada_t2"
        )
    elif "lokr_w1" in f or "lokr_w1_a" in f:
        change = _kronecker(f)
    elif "a1" in f:
        change = torch.einsum("oi...,ij->oj...", weight, f["a1"].flatten(1) @ f["a2"].flatten(1))
        change = change + (f["b1"].flatten(1) @ f["b2"].flatten(1)).view(weight.shape)
    else:
        change = _low_rank(f)
    return change * delta.scale


def _low_rank(f: dict[str, Tensor]) -> Tensor:
    """up @ down, or with a middle: r s k l."""
    up, down = f["up"].flatten(1), f["down"]
    if "mid" in f:
        return torch.einsum("or,rskl,si->oikl", up, f["mid"], down.flatten(1))
    if down.ndim == 4 and down.shape[2:] != (1, 1):
        return torch.einsum("or,rikl->oikl", up, down)
    return torch.mm(up, down.flatten(1))


def _rotated(weight: Tensor, delta: Delta, scale: float) -> Tensor:
    """A weight whose outputs OFT (n b b) rotates, or BOFT (stages n b b), as LyCORIS does.

    Each rotation is between none and its own by `scale`. alpha times the channels is the longest
    skew-symmetric matrix. A learned length by output, `rescale`, counts whole.
    """
    blocks = delta.factors["oft_blocks"].float().to(weight.device)
    skew = blocks - blocks.mT
    longest = (delta.alpha or 0.0) * len(weight)
    if longest > 0:
        skew = skew * (longest / skew.norm().clamp(min=longest))
    one = torch.eye(skew.shape[-1], device=weight.device)
    rotation = scale * ((one + skew) @ torch.linalg.inv(one - skew)) + (1 - scale) * one
    if rotation.ndim == 3:
        inputs = weight.unflatten(0, rotation.shape[:2])  # n b i …
        turned = torch.einsum("nba,nb...->na...", rotation, inputs).flatten(0, 1)
    else:
        turned = weight
        for stage, turn in enumerate(rotation):
            turned = _butterfly(turned, turn, 2**stage * (turn.shape[-1] // 2))
    if "rescale" in delta.factors:
        length = delta.factors["rescale"].float().to(weight.device)
        turned = turned * length.view(-1, *[1] * (weight.ndim - 1))
    return turned


def _butterfly(weight: Tensor, rotation: Tensor, distance: int) -> Tensor:
    """One stage of BOFT: it rotates outputs together that are `distance` apart; rotation: n b b."""
    x = weight.unflatten(0, (-1, 2, distance)).transpose(1, 2).flatten(0, 2)
    x = x.unflatten(0, (-1, rotation.shape[-1]))  # n b i …
    x = torch.einsum("nab,nb...->na...", rotation, x).flatten(0, 1)
    turned: Tensor = x.unflatten(0, (-1, distance, 2)).transpose(1, 2).flatten(0, 2)
    return turned


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


def _tucker(f: dict[str, Tensor], a: str, b: str, core: str) -> Tensor:
    """a @ b, or with a core: r s k l, s i, r o -> o i k l."""
    if core in f:
        return torch.einsum("rskl,si,ro->oikl", f[core], f[b], f[a])
    return f[a] @ f[b]


def _kronecker(f: dict[str, Tensor]) -> Tensor:
    """w1 ⊗ w2, each whole or a product."""
    small = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
    large = f["lokr_w2"] if "lokr_w2" in f else _tucker(f, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    if large.ndim == 4:
        small = small[:, :, None, None]
    return torch.kron(small, large.contiguous())
