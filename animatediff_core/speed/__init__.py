"""Everything that only makes a loaded model faster or leaner; the plain modules stay the reference.

`optimize` puts faster forwards in front of the plain ones of a loaded model and packs its weights;
`restore` (and the animated model's `deflate`) takes all of it back, bit for bit.
"""

from .optimizer import kernels_of, optimize, optimize_vae, restore, suspend

__all__ = ["kernels_of", "optimize", "optimize_vae", "restore", "suspend"]
