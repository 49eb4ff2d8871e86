"""Samplers by name: the diffusers scheduler of each, and its limits.

Left out are diffusers' schedulers that step over other noise than a Stable Diffusion model was
trained on: EDM, flow matching, consistency models, and those of single other pipelines.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.util import find_spec

from ..errors import AnimateDiffError

SPACINGS = ("karras", "exponential", "beta")
"""Spacings of the steps over the noise levels: diffusers' use_..._sigmas."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One sampler."""

    scheduler: str
    """Class in diffusers.schedulers."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Arguments besides betas and prediction type."""
    sigmas: bool = False
    """Whether its steps can be spaced by noise level (karras, exponential, beta)."""
    steps_chosen: bool = True
    """Whether it takes timestep_spacing; else its steps are spaced evenly up to the last."""
    zero_snr: bool = False
    """Whether it runs on noise that ends in zero SNR."""
    predicts_sample: bool = True
    """Whether it runs on a base model that predicts the sample."""
    most_steps: int = 1000
    reaches_zero: bool = True
    """Whether its last step leaves no noise; else it ends at the lowest level of training."""
    package: str | None = None
    """Package that it needs besides diffusers."""


def _multistep(algorithm: str, order: int) -> Sampler:
    settings = {"algorithm_type": algorithm, "solver_order": order}
    return Sampler(
        scheduler="DPMSolverMultistepScheduler", settings=settings, sigmas=True, zero_snr=True
    )


def _singlestep(algorithm: str) -> Sampler:
    settings = {"algorithm_type": algorithm, "lower_order_final": True}
    return Sampler(
        scheduler="DPMSolverSinglestepScheduler", settings=settings, sigmas=True, steps_chosen=False
    )


def _of_sigmas(scheduler: str, *, predicts_sample: bool = False) -> Sampler:
    return Sampler(scheduler=scheduler, sigmas=True, predicts_sample=predicts_sample)


_DPM_2, _DPM_2_A = "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler(
        scheduler="DDIMScheduler",
        settings={"clip_sample": False, "set_alpha_to_one": True},
        zero_snr=True,
    ),
    "ddpm": Sampler(scheduler="DDPMScheduler", settings={"clip_sample": False}, zero_snr=True),
    "pndm": Sampler(
        scheduler="PNDMScheduler",
        settings={"skip_prk_steps": True, "set_alpha_to_one": True},
        predicts_sample=False,
    ),
    "euler": Sampler(scheduler="EulerDiscreteScheduler", sigmas=True, zero_snr=True),
    "euler_a": Sampler(
        scheduler="EulerAncestralDiscreteScheduler", zero_snr=True, predicts_sample=False
    ),
    "heun": _of_sigmas("HeunDiscreteScheduler", predicts_sample=True),
    "lms": replace(_of_sigmas("LMSDiscreteScheduler", predicts_sample=True), package="scipy"),
    "dpm_2": _of_sigmas(_DPM_2),
    "dpm_2_a": _of_sigmas(_DPM_2_A),
    "dpmpp_2m": _multistep("dpmsolver++", 2),
    "dpmpp_2m_sde": _multistep("sde-dpmsolver++", 2),
    "dpmpp_3m": _multistep("dpmsolver++", 3),
    "dpmpp_3m_sde": _multistep("sde-dpmsolver++", 3),
    "dpmpp_2s": _singlestep("dpmsolver++"),
    "dpmpp_2s_sde": _singlestep("sde-dpmsolver++"),
    "dpmpp_sde": replace(_of_sigmas("DPMSolverSDEScheduler"), package="torchsde"),
    "unipc": Sampler(scheduler="UniPCMultistepScheduler", sigmas=True, zero_snr=True),
    "deis": replace(_of_sigmas("DEISMultistepScheduler", predicts_sample=True), reaches_zero=False),
    "sa_solver": replace(_of_sigmas("SASolverScheduler", predicts_sample=True), reaches_zero=False),
    "lcm": Sampler(
        scheduler="LCMScheduler",
        settings={"clip_sample": False, "original_inference_steps": 100},
        zero_snr=True,
        most_steps=100,
    ),
    "tcd": Sampler(
        scheduler="TCDScheduler",
        settings={"clip_sample": False, "original_inference_steps": 50},
        zero_snr=True,
        most_steps=50,
    ),
}
ALIASES: Mapping[str, str] = {
    **{one.scheduler.lower(): name for name, one in reversed(list(SAMPLERS.items()))},
    "plms": "pndm",
    "dpm2": "dpm_2",
    "dpm2_a": "dpm_2_a",
    "kdpm_2": "dpm_2",
    "kdpm_2_a": "dpm_2_a",
    "dpmpp": "dpmpp_2m",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
}
"""Other tools' names, as `_spelled` has them, and diffusers' classes."""


def scheduler_names() -> list[str]:
    """Every name but the aliases and the `k_` forms."""
    names = []
    for name, sampler in SAMPLERS.items():
        names += [name, *(f"{name}_{spacing}" for spacing in SPACINGS if sampler.sigmas)]
    return names


def plain_name(name: str) -> str:
    """A sampler's own name, also for the names of other tools: `k_lms` of animatediff-cli is
    lms_karras, and so is A1111's `LMS Karras`.

    Raises AnimateDiffError for an unknown name.
    """
    spelled = _spelled(name)
    bare = spelled.removeprefix("k_")
    stem, _, ending = bare.rpartition("_")
    spacing = f"_{ending}" if ending in SPACINGS else ""
    stem = stem if spacing else bare
    known = ALIASES.get(stem, stem)
    if known in SAMPLERS and not (spacing and bare != spelled):
        spacing = "_karras" if bare != spelled else spacing
        if not spacing or SAMPLERS[known].sigmas:
            return known + spacing
        raise AnimateDiffError(
            f"scheduler {name!r}: {known} has no form {spacing[1:]}; use {known}"
        )
    if near := get_close_matches(spelled, [*scheduler_names(), *ALIASES], 1):
        raise AnimateDiffError(
            f"no scheduler {name!r}; did you mean {ALIASES.get(near[0], near[0])}?"
        )
    raise AnimateDiffError(
        f"no scheduler {name!r}; there are {', '.join(SAMPLERS)}, most of them also with "
        f"{', '.join(f'_{spacing}' for spacing in SPACINGS)}"
    )


def _spelled(name: str) -> str:
    """A name of any tool in our spelling: `DPM++ 2M SDE Karras` is dpmpp_2m_sde_karras."""
    spelled = re.sub(r"[\s_-]+", "_", name.strip().lower().replace("++", "pp"))
    return spelled.removesuffix("_gpu").replace("_ancestral", "_a")


def find_sampler(name: str) -> Sampler:
    """A sampler with its spacing among the settings.

    Raises AnimateDiffError for an unknown name, or a package that is not installed.
    """
    whole = plain_name(name)
    stem, _, ending = whole.rpartition("_")
    spacing = ending if ending in SPACINGS else None
    sampler = SAMPLERS[stem if spacing else whole]
    package = "scipy" if spacing == "beta" else sampler.package
    for needed in {package, sampler.package} - {None}:
        if find_spec(str(needed)) is None:
            raise AnimateDiffError(
                f"scheduler {name} needs the package {needed}: pip install {needed}"
            )
    if spacing is None:
        return sampler
    return replace(sampler, settings={**sampler.settings, f"use_{spacing}_sigmas": True})
