"""From files to a model that is ready to sample, ours against diffusers' AnimateDiffPipeline.

Each load is a process of its own, which take turns: seconds by the place's clock, and what its
memory rises by at its peak, counted from after the imports. On the CPU that is the process's, where
pages of mapped files count as well.

`python benchmarks/load.py [SIZE]` prints the peak of main memory without mapped pages (they cost
nothing that the system cannot take back) over the weights in the dtype that runs: fp16 files to
bf16, for a folder, a single file and a pickle.
"""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from place import Place, place_of

SIDES = ("ours", "diffusers")
FORMS = ("base", "single.safetensors", "single.ckpt")


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


def half_precision(size: str, rounds: int = 3) -> Iterator[str]:
    """A line for each form: memory over weights, and CPU seconds."""
    from models import write_forms
    from turns import run_child

    folder = Path("build") / f"bench-{size}-fp16"
    write_forms(size, folder)
    cases = [("ours", form) for form in FORMS if (folder / form).exists()]
    for side, form in [("diffusers", "base"), *cases]:
        runs = []
        for _ in range(rounds):
            child = run_child([__file__, side, folder, "cpu", form])
            runs.append(json.loads(child.output))
        told = {key: sorted(run[key] for run in runs)[rounds // 2] for key in runs[0]}
        yield (
            f"{side}, {form}: {told['anonymous']:.0f} MB at the peak for {told['weights']:.0f} MB "
            f"of weights = {told['anonymous'] / told['weights']:.2f}; {told['seconds']:.2f} s"
        )


def _main(side: str, folder: Path, place: Place, form: str | None) -> None:
    """The child: load, and tell on stdout what it took."""
    load = (_ours if side == "ours" else _theirs)(folder, place, form)
    place.forget_peak()  # after the imports
    before, start = place.memory(), place.process_seconds()
    with _watched() as anonymous:
        loaded = load()
    seconds = place.process_seconds() - start
    told = {"seconds": seconds, "peak": place.peak() - before, "anonymous": anonymous()}
    told["weights"] = _megabytes(loaded)
    sys.stdout.write(json.dumps(told))


@contextmanager
def _watched() -> Iterator[Callable[[], float]]:
    """The most anonymous memory that the process has meanwhile, above what it has now: MB."""
    path, done = Path("/proc/self/status"), threading.Event()

    def now() -> float:
        match = re.search(r"RssAnon:\s+(\d+) kB", path.read_text())
        assert match is not None
        return int(match[1]) * 1024 / 1e6

    start = now()
    most = [start]

    def watch() -> None:
        while not done.wait(0.002):
            most.append(max(most.pop(), now()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: most[0] - start
    finally:
        done.set()
        watcher.join()


def _megabytes(loaded: Any) -> float:
    """The weights of diffusers' pipeline, or of our base model and motion module."""
    if hasattr(loaded, "components"):
        parts = [loaded.unet, loaded.vae, loaded.text_encoder]
    else:
        base, motion = loaded if isinstance(loaded, tuple) else (loaded.base, loaded.motion)
        parts = [base.unet, base.vae, *base.text_encoders, motion]
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters()) / 1e6


def _ours(folder: Path, place: Place, form: str | None) -> Any:
    import torch

    from animatediff_core.planning.models import ModelSpec, find_model
    from animatediff_core.sampling.loading import load_model
    from animatediff_core.sampling.placement import PlacedModel, Placement

    spec = ModelSpec(base=str(folder / (form or "base")), motion=str(folder / "motion"))

    def half() -> Any:
        found = find_model(spec, offline=True)
        return load_model(found, dtype=torch.bfloat16, offline=True)

    def ready() -> PlacedModel:
        placement = Placement(place.device, place.dtypes[0])
        found = find_model(spec, offline=True)
        return PlacedModel(*load_model(found, dtype=placement.dtype, offline=True), placement)

    return ready if form is None else half


def _theirs(folder: Path, place: Place, form: str | None) -> Any:
    import torch
    from diffusers import AnimateDiffPipeline, MotionAdapter

    dtype = place.dtypes[0] if form is None else torch.bfloat16

    def ready() -> AnimateDiffPipeline:
        adapter = MotionAdapter.from_pretrained(folder / "motion", torch_dtype=dtype)
        return AnimateDiffPipeline.from_pretrained(
            folder / (form or "base"), motion_adapter=adapter, torch_dtype=dtype
        ).to(place.device)

    return ready


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _main(sys.argv[1], Path(sys.argv[2]), place_of(sys.argv[3]), (sys.argv[4:] or [None])[0])
    else:
        for line in half_precision((sys.argv[1:] or ["full"])[0]):
            sys.stdout.write(f"{line}\n")
