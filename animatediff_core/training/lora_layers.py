"""Low-rank layers beside a frozen UNet (LoRA, arXiv 2106.09685), by hooks: W x + B A x.

A starts random, B at zero, so the first step is the base model. Written in PEFT's keys without
alpha, which every loader reads as scale 1.
"""

import re

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn

_ATTENTION = re.compile(r"attn[12]\.(to_[qkv]|to_out\.0)$")


class LoraLayers(nn.Module):
    """One pair of matrices for every linear layer of the UNet's attentions."""

    def __init__(self, unet: UNet2DConditionModel, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        named = {
            name: layer
            for name, layer in unet.named_modules()
            if isinstance(layer, nn.Linear) and _ATTENTION.search(name)
        }
        self.names = list(named)
        self.down = nn.ParameterList()
        self.up = nn.ParameterList()
        for layer in named.values():
            down = torch.randn(rank, layer.in_features, generator=generator) / rank
            self.down.append(nn.Parameter(down))
            self.up.append(nn.Parameter(torch.zeros(layer.out_features, rank)))
        self._handles = [
            layer.register_forward_hook(self._hook(number))
            for number, layer in enumerate(named.values())
        ]

    def _hook(self, number: int):  # type: ignore[no-untyped-def]
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            down, up = self.down[number], self.up[number]
            added: Tensor = inputs[0].to(down.dtype) @ down.T.to(down.dtype) @ up.T
            return output + added.to(output.dtype)

        return add

    def by_key(self) -> dict[str, nn.Parameter]:
        """Every matrix by the key that it is written under."""
        keys: dict[str, nn.Parameter] = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            keys[f"unet.{name}.lora_A.weight"] = down
            keys[f"unet.{name}.lora_B.weight"] = up
        return keys

    def remove(self) -> None:
        """Take the hooks out: the UNet is the base model again."""
        while self._handles:
            self._handles.pop().remove()
