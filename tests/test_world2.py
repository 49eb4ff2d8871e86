"""World 2: scenes, captions, pictures, and stages that run on whatever device they are on."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from animatediff_core.tiny.world2 import models, stages


class OneDevice(TorchDispatchMode):
    """Refuses an operation that brings CPU tensors to the device, as a CUDA graph does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [
            a for a in torch.utils._pytree.tree_leaves((args, kwargs or {})) if torch.is_tensor(a)
        ]
        on_cpu = [t for t in tensors if t.device.type == "cpu" and t.dim() > 0]
        out = func(*args, **(kwargs or {}))
        made = [t for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t)]
        self.count = getattr(self, "count", 0) + 1
        assert not on_cpu, f"{func} takes a CPU tensor"
        assert all(t.device.type == "meta" for t in made if t.dim()), f"{func} makes a CPU tensor"
        return out


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_training_step_touches_one_device_and_never_waits_for_values(stage, tmp_path):
    family = stages.Family(
        folder=tmp_path, device=torch.device("meta"), dtype=torch.bfloat16, sizes=models.FULL
    )
    loss_of, names, _ = stages._STAGES[stage](family)
    for name in names:
        family.parts()[name].requires_grad_(True)
    with OneDevice() as mode:
        loss = loss_of()
        forward = mode.count
        loss.backward()

    assert all(p.grad is not None for n in names for p in family.parts()[n].parameters())
