"""Noise schedules: the betas that the motion module was trained with, in diffusers' schedulers.

Official settings (inference-v1..3.yaml with the diffusers of that time): leading spacing,
steps_offset 1, no clipping of samples, alpha 1 after the last step. Few-step modules are sampled
with trailing spacing, as they were distilled.
"""

from diffusers.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import AnimateDiffError
from ..motion import Betas, MotionConfig

_SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, object]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_karras": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {"clip_sample": False, "original_inference_steps": 100}),
}


def scheduler_names() -> list[str]:
    """The names that `make_scheduler` knows."""
    return list(_SCHEDULERS)


def make_scheduler(
    name: str, config: MotionConfig, *, prediction_type: str = "epsilon", zero_snr: bool = False
) -> SchedulerMixin:
    """A sampler over the noise schedule of a motion module.

    `prediction_type` is the base model's: epsilon, v_prediction or sample. `zero_snr` is for a
    base model that was trained on betas rescaled to end in pure noise (arXiv 2305.08891): the
    sampler's are rescaled too, and its steps begin at the very last, which is that noise.
    """
    if name not in _SCHEDULERS:
        raise AnimateDiffError(f"no scheduler {name!r}; there are {', '.join(_SCHEDULERS)}")
    kind, settings = _SCHEDULERS[name]
    common: dict[str, object] = {"timestep_spacing": config.timestep_spacing, "steps_offset": 1}
    if kind is PNDMScheduler and (zero_snr or prediction_type == "sample"):
        why = "whose noise ends in zero SNR" if zero_snr else "that predicts the sample"
        raise AnimateDiffError(f"scheduler pndm does not run on a base model {why}; use ddim")
    if kind is EulerAncestralDiscreteScheduler and prediction_type == "sample":
        raise AnimateDiffError(
            "scheduler euler_a does not run on a base model that predicts the sample; use euler"
        )
    if zero_snr:
        common |= {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    return kind(**betas_of(config.betas), prediction_type=prediction_type, **{**common, **settings})


def training_scheduler(
    betas: Betas, *, prediction_type: str = "epsilon", zero_snr: bool = False
) -> DDPMScheduler:
    """The forward process that adds noise in training, 1,000 steps; `zero_snr` as above."""
    return DDPMScheduler(
        **betas_of(betas), prediction_type=prediction_type, clip_sample=False,
        rescale_betas_zero_snr=zero_snr,
    )  # fmt: skip


def betas_of(betas: Betas) -> dict[str, object]:
    """Betas as diffusers' schedulers name them."""
    start, end, schedule = betas
    return {
        "num_train_timesteps": 1000,
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": schedule,
    }
