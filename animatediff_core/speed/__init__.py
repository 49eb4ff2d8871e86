"""Everything that only makes a loaded model faster or leaner; the plain modules stay the reference.

`optimize` puts faster forwards in front of the plain ones of a loaded model;
`restore` (and the animated model's `deflate`) takes all of it back, bit for bit.
"""

from .optimizer import has_kernels, kernels_of, optimize, optimize_vae, restore

__all__ = ["has_kernels", "kernels_of", "optimize", "optimize_vae", "restore"]
