"""The training objective: mean squared error on what the scheduler's prediction_type names.

Legend: b batch, f frames, c channels, h w latent size, n tokens, d features.
"""

from diffusers.models import UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from ..motion import AnimatedUNet, Conditions, added_conditions


def motion_loss(
    animated: AnimatedUNet,
    scheduler: DDPMScheduler,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    text: Tensor,
    conditions: Conditions | None = None,
) -> Tensor:
    """The paper's equation 3: one timestep a clip, noise independent for each frame.

    latents, noise: b c f h w, latents scaled; timesteps: b; text: b n d; `conditions`: SDXL's
    pooled text and sizes. Returns a scalar, fp32.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = animated(noisy, timesteps, text, conditions)
    return F.mse_loss(predicted.float(), target(scheduler, latents, noise, timesteps).float())


def image_loss(
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    text: Tensor,
    weights: Tensor | None = None,
    conditions: Conditions | None = None,
) -> Tensor:
    """The loss of the plain image UNet: latents, noise b c h w. Returns a scalar, fp32.

    `weights`, b: the weight of each image in the mean. `conditions`: those of an image.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    conditions = conditions or Conditions()
    predicted = unet(
        noisy,
        timesteps,
        text,
        added_cond_kwargs=added_conditions(conditions, 1),
        down_block_additional_residuals=conditions.down_residuals or None,
        mid_block_additional_residual=conditions.mid_residual,
        return_dict=False,
    )[0]
    wanted = target(scheduler, latents, noise, timesteps).float()
    if weights is None:
        return F.mse_loss(predicted.float(), wanted)
    errors = F.mse_loss(predicted.float(), wanted, reduction="none").flatten(1).mean(1)  # b
    return (errors * weights).mean()


def target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The training target: the noise for SD1.5, the velocity for v-prediction models."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    if kind == "sample":
        return latents
    raise ValueError(f"prediction_type {kind!r} has no training target")
