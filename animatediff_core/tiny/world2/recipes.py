"""How each stage is trained."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a stage is trained."""

    batch: int
    """Images, or clips, of a step."""
    new: int = 0
    """How many of them are new; the others come from a pool of earlier ones."""
    pool: int = 0
    """Size of that pool."""
    learning_rate: float
    warmup: int = 100
    """Steps from 0 to the full rate; from there it falls as a cosine over the stage's time."""
    average: float = 0.998
    """Decay a step of the averaged weights."""
    gate_every: float = 30.0
    """Seconds between reports."""


RECIPES = {
    "vae": Recipe(batch=64, learning_rate=1.2e-3, average=0.995),
    "judge": Recipe(batch=32, learning_rate=1e-3, average=0.99),
    "base": Recipe(batch=224, new=48, pool=8192, learning_rate=1e-3, average=0.998, gate_every=45),
    "motion": Recipe(
        batch=16, new=4, pool=1536, learning_rate=1.2e-3, average=0.997, gate_every=45
    ),
}
TOY_RECIPES = {
    "vae": Recipe(batch=4, learning_rate=1e-3, warmup=2, gate_every=5),
    "judge": Recipe(batch=2, learning_rate=1e-3, warmup=2, gate_every=5),
    "base": Recipe(batch=8, new=4, pool=8, learning_rate=1e-3, warmup=2, gate_every=5),
    "motion": Recipe(batch=2, new=1, pool=4, learning_rate=1e-3, warmup=2, gate_every=5),
}
