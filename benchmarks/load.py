"""From files to a model that is ready to sample, ours against diffusers' AnimateDiffPipeline.

Each load is a process of its own, which take turns: seconds by the place's clock, and what its
memory rises by at its peak, counted from after the imports. On the CPU that is the process's, where
pages of mapped files count as well.
"""

import json
import sys
from pathlib import Path
from typing import Any

from place import Place, place_of

SIDES = ("ours", "diffusers")


def compare_loading(place: Place, size: str, rounds: int) -> list[dict[str, Any]]:
    """Two rows: seconds, and megabytes at the peak."""
    from models import write_model  # a child must not import what its side does not use
    from turns import run_child, spread

    folder = Path("build") / f"bench-{size}"
    write_model(size, folder)
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            child = run_child([__file__, side, folder, place.device.type])
            found[side].append(json.loads(child.output))
    rows = []
    for what, unit, name in (("seconds", "s", "load to ready"), ("peak", "MB", "loading, peak")):
        sides = {side: spread([one[what] for one in runs]) for side, runs in found.items()}
        ratio = sides["diffusers"][1] / sides["ours"][1]
        case = f"{name}, {size}, {weights:.0f} MB of weights"
        rows.append({"case": case, "unit": unit, **sides, "ratio": ratio})
    return rows


def _main(side: str, folder: Path, place: Place) -> None:
    """The child: load, and tell on stdout what it took."""
    ready = _ours if side == "ours" else _theirs
    load = ready(folder, place)
    place.forget_peak()  # after the imports
    before, start = place.memory(), place.process_seconds()
    loaded = load()
    seconds = place.process_seconds() - start
    told = {"seconds": seconds, "peak": place.peak() - before}
    assert loaded is not None
    sys.stdout.write(json.dumps(told))


def _ours(folder: Path, place: Place) -> Any:
    from animatediff_core.planning.models import ModelSpec, find_model
    from animatediff_core.sampling.loading import load_model
    from animatediff_core.sampling.placement import PlacedModel, Placement

    def ready() -> PlacedModel:
        parts = ModelSpec(base=str(folder / "base"), motion=str(folder / "motion"))
        placing = Placement(place.device, place.dtypes[0])
        return PlacedModel(*load_model(find_model(parts, offline=True), offline=True), placing)

    return ready


def _theirs(folder: Path, place: Place) -> Any:
    from diffusers import AnimateDiffPipeline, MotionAdapter

    def ready() -> AnimateDiffPipeline:
        adapter = MotionAdapter.from_pretrained(folder / "motion")
        return AnimateDiffPipeline.from_pretrained(
            folder / "base", motion_adapter=adapter, torch_dtype=place.dtypes[0]
        ).to(place.device)

    return ready


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), place_of(sys.argv[3]))
