"""What led a clip besides its prompt, as files with their digests: for its sidecar."""

from collections.abc import Iterator
from pathlib import Path

from ..jobs import Job
from ..weights.files import digest
from ..weights.places import local_path
from .conditions import ConditionModels


def condition_files(job: Job, models: ConditionModels) -> list[dict[str, str]]:
    """Role, path and SHA-256 of every picture, video and model that leads a job's clip; what
    several jobs share is read once."""
    told = []
    for role, source, place in dict.fromkeys(_files(job, models.offline)):
        found = models.once("sha256", str(place), lambda place=place: digest(place))  # type: ignore[misc]
        path = str(Path(source).absolute()) if Path(source).exists() else source
        told.append({"role": role, "path": path, "sha256": found})
    return told


def _files(job: Job, offline: bool) -> Iterator[tuple[str, str, Path]]:
    """Role, name in the job and local place."""
    for net in job.controlnets:
        yield "controlnet", net.path, local_path(net.path, "control", offline=offline)
    for net in job.t2i_adapters:
        yield "t2i_adapter", net.path, local_path(net.path, "control", offline=offline)
    for sparse in job.sparse_controls:
        yield "sparse_control", sparse.path, local_path(sparse.path, "control", offline=offline)
    for adapter in job.ip_adapters:
        yield "ip_adapter", adapter.path, local_path(adapter.path, offline=offline)
        yield (
            "image_encoder",
            adapter.encoder,
            local_path(adapter.encoder, "image encoder", offline=offline),
        )
    for source in _pictures(job):
        yield "pictures", source, Path(source)


def _pictures(job: Job) -> Iterator[str]:
    for net in (*job.controlnets, *job.t2i_adapters):
        yield net.images.path
    for sparse in job.sparse_controls:
        yield from sparse.images.values()
    for adapter in job.ip_adapters:
        yield from adapter.images.values()
    if job.keyframes is not None:
        yield from job.keyframes.images.values()
    if job.start is not None:
        yield job.start.images.path
        if job.start.mask is not None:
            yield job.start.mask.path
    for region in job.regions:
        yield region.mask.path
    if job.animate is not None:
        yield job.animate.image
