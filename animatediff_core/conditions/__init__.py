"""The conditioning inputs of a job besides its prompts: one file a kind.

A kind is a record in `jobs/conditions.py` and a `Kind` here: what it reads, what is checked before
anything is loaded, what is loaded, and what it adds to a sampling run. Planning, provenance,
loading and sampling visit them all through KINDS.
"""

from .animate import ANIMATE
from .controlnets import CONTROLNETS
from .ip_adapters import IP_ADAPTERS
from .keyframes import KEYFRAMES
from .kind import Kind, LoadedModel
from .loras import LORAS
from .motion import MOTION
from .regions import REGIONS
from .sparse_controls import SPARSE_CONTROLS
from .start import START
from .t2i_adapters import T2I_ADAPTERS

KINDS: tuple[Kind, ...] = (
    CONTROLNETS,
    T2I_ADAPTERS,
    SPARSE_CONTROLS,
    LORAS,
    IP_ADAPTERS,
    START,
    KEYFRAMES,
    ANIMATE,
    MOTION,
    REGIONS,
)
"""In this order: what changes the UNet follows the models that are built after its structure,
keyframes lie over the video of `start`, and regions take over all other conditions."""

__all__ = ["KINDS", "Kind", "LoadedModel"]
