"""The GPU benchmarks of a whole clip, a training step, and cards with less memory."""

import copy
import gc
from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_sides import (
    DEVICE,
    HALF,
    ON_GPU,
    SIDE,
    Row,
    Side,
    clock,
    diffusers_model,
    inputs,
    parts,
    peak,
    random_vae,
    timed,
)
from torch import Tensor, nn


@torch.no_grad()
def clip() -> Iterator[Row]:
    """From loaded weights and embedded prompts to frames: 25 steps and decoding."""
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    import animatediff_core as ad
    from animatediff_core.diffusion.decoding import decode
    from animatediff_core.speed import optimize_vae

    steps = 25 if ON_GPU else 2
    unet, motion = parts()
    vae = random_vae()
    their_vae = copy.deepcopy(vae).to(HALF)
    theirs = diffusers_model(unet, motion)
    settings = {"beta_schedule": "linear", "clip_sample": False, "timestep_spacing": "leading"}
    pipe = AnimateDiffPipeline(
        vae=nn.Module.to(their_vae, memory_format=torch.channels_last), text_encoder=None,
        tokenizer=None, unet=theirs, motion_adapter=None, scheduler=DDIMScheduler(**settings),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    x, texts = inputs()
    animated, size = ad.optimize(ad.inflate(unet, motion)), SIDE * 8
    optimize_vae(vae)
    torch.backends.cudnn.allow_tf32 = True  # as `generate` sets it beside a model in fp16

    def ours() -> object:
        scheduler = ad.make_scheduler("ddim", motion.config)
        latents = ad.denoise(animated, scheduler, x, texts[:1], texts[1:], steps=steps)
        return decode(vae, latents)

    def other() -> object:
        return pipe(
            prompt_embeds=texts[:1], negative_prompt_embeds=texts[1:], latents=x.clone(),
            num_frames=x.shape[2], height=size, width=size, num_inference_steps=steps,
            guidance_scale=7.5, output_type="np",
        )  # fmt: skip

    times = timed({"ours": ours, "diffusers": other}, 2, 1)
    yield f"clip, {steps} steps, ms", {**times, "ratio": times["diffusers"] / times["ours"]}
    latents = x.float()
    yield "decoding alone, ms", timed({"ours": lambda: decode(vae, latents)}, 3, 1)
    torch.backends.cudnn.allow_tf32 = False


def train() -> Iterator[Row]:
    """A training step of the motion module, 16 frames of 256 x 256, bf16 autocast."""
    for checkpointing in (False, True):
        sides = training_sides(checkpointing)
        for side in sides.values():
            side()  # the optimizer's state is there
        peaks = {name: peak(side).get("GiB", 0.0) for name, side in sides.items()}
        times = timed(sides, 5, 1)
        kind = "step, checkpointing" if checkpointing else "step"
        yield f"{kind}, ms", {**times, "ratio": times["diffusers"] / times["ours"]}
        yield f"{kind}, peak, GiB", peaks
        del sides
        gc.collect()


def training_sides(checkpointing: bool) -> dict[str, Side]:
    import animatediff_core as ad
    from animatediff_core.training.checkpointing import recompute_blocks

    unet, motion = parts(dtype=torch.float32)
    theirs = diffusers_model(unet, motion, torch.contiguous_format)
    theirs.freeze_unet2d_params()
    animated = ad.inflate(unet, motion)
    motion.requires_grad_(True)
    if checkpointing:
        theirs.enable_gradient_checkpointing()
        recompute_blocks(animated)
    theirs.train()
    x, texts = inputs(SIDE // 2, dtype=torch.float32)
    states = texts[:1].repeat_interleave(x.shape[2], 0)
    moment = torch.tensor([500], device=DEVICE)
    calls = {
        "diffusers": lambda: theirs(x, moment, states).sample,
        "ours": lambda: animated(x, moment, texts[:1]),
    }
    learned = [p for p in theirs.parameters() if p.requires_grad], list(motion.parameters())
    return {
        name: partial(training_step, call, torch.optim.AdamW(some, lr=1e-6, fused=True))
        for (name, call), some in zip(calls.items(), learned, strict=True)
    }


def training_step(call: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = call().float().square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def memory() -> Iterator[Row]:
    """A clip of 2 steps on cards with less memory: the offload level, and its seconds."""
    import animatediff_core as ad
    from animatediff_core.checkpoints.base_model import BaseModel
    from animatediff_core.diffusion.decoding import decode
    from animatediff_core.sampling.placement import PlacedModel, Placement

    unet, motion = (part.cpu() for part in parts())
    vae = random_vae().cpu()
    base = BaseModel(unet, vae, [], [], {}, "SD1.5", "random")
    x, texts = inputs()
    placed = PlacedModel(base, motion, Placement(DEVICE, HALF))
    for limit in (80, 8, 6, 4, 3):
        if ON_GPU:
            gc.collect()
            torch.cuda.empty_cache()
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 2**30 / whole))
            torch.cuda.reset_peak_memory_stats()
        for _ in range(6):
            start = clock()
            try:
                scheduler = ad.make_scheduler("ddim", motion.config)
                latents = ad.denoise(placed.animated, scheduler, x, texts[:1], texts[1:], steps=2)
                decode(vae, latents, chunk=placed.placement.memory.decode_chunk)
            except torch.OutOfMemoryError:
                if not placed.use_less_memory():
                    yield f"{limit} GiB", {"fits": False}
                    return
            else:
                break
        if ON_GPU:
            yield f"{limit} GiB", {
                "level": str(placed.placement.memory), "s": clock() - start,
                "peak": torch.cuda.max_memory_reserved() / 2**30,
            }  # fmt: skip
        else:
            yield f"{limit} GiB", {"level": str(placed.placement.memory)}
            return
