"""Decoding of a job's latents, with a note for the user and the sidecar."""

import logging
from typing import Any

import numpy as np
from torch import Tensor

from ..checkpoints.base_model import BaseModel
from ..diffusion.decoding import decode
from ..errors import ClipError
from ..jobs import Job

log = logging.getLogger(__name__)
_AGAIN = "decoded again in fp32"


def decoded(
    job: Job, base: BaseModel, latents: Tensor, notes: dict[str, Any], chunk: int
) -> np.ndarray:
    """Frames f h w 3 uint8 of latents 1 c f h w; `notes` gets a line of the sidecar if needed.

    Raises ClipError if the VAE gives no numbers.
    """

    def overflowed() -> None:
        if "vae" not in notes:
            message = "%s: the VAE overflows in %s; its frames are %s"
            log.warning(message, job.name, base.vae.dtype, _AGAIN)
        notes["vae"] = _AGAIN

    try:
        return decode(base.vae, latents, chunk=chunk, on_overflow=overflowed)
    except ClipError as error:
        raise ClipError(f"{job.name}: {error}") from error
