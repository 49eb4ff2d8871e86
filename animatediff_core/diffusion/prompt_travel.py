"""Travel between prompts: what each frame has of the prompt before it and of the one after.

Legend: k prompts, f frames, n tokens, d features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..jobs.choices import Travel

_NO_ARC = 1e-3
"""Sine of the angle below which two directions have no arc between them that fp32 can tell."""


def travelled(
    embeddings: Tensor, keys: Sequence[int], frames: Sequence[int], way: Travel
) -> Tensor:
    """Embeddings, k ... d, that hold from frames `keys` on -> f ... d, those of given frames.

    Before the first key the first prompt holds, after the last the last; at a key's frame the
    embedding is that prompt's own, bit for bit. A frame does not depend on the others asked for.
    """
    places = [_place(keys, frame) for frame in frames]
    before, after, share = (
        torch.tensor(one).to(embeddings.device, non_blocking=True)
        for one in zip(*places, strict=True)
    )
    share = share.view(-1, *[1] * (embeddings.ndim - 1))  # f 1 ... 1
    return (slerp if way == "slerp" else _straight)(embeddings[before], embeddings[after], share)


def _straight(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    return ((1 - share) * start.float() + share * end.float()).to(start)


def _place(keys: Sequence[int], frame: int) -> tuple[int, int, float]:
    """Indices of the prompts before and after a frame, and its share of the way between them."""
    after = next((i for i, key in enumerate(keys) if key > frame), len(keys))
    before = max(after - 1, 0)
    if after in (len(keys), before):
        return before, before, 0.0
    return before, after, (frame - keys[before]) / (keys[after] - keys[before])


def slerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Each token's vector along the arc between two: as long all the way as at its ends.

    start, end: ... d; share: 0..1, broadcast to them. Where there is no arc, the way is straight.
    """
    a, b = start.float(), end.float()
    cosine = F.cosine_similarity(a, b, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / sine.clamp(min=_NO_ARC)
    way = torch.where(sine < _NO_ARC, _straight(a, b, share), arc)
    way = torch.where(share == 0, a, torch.where(share == 1, b, way))
    return way.to(start)
