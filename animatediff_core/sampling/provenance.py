"""The files that a job's conditions read, with their digests, for the clip's sidecar."""

from pathlib import Path

from ..conditions import KINDS, LoadedModel
from ..jobs import Job
from ..weights.files import digest


def condition_files(job: Job, model: LoadedModel) -> list[dict[str, str]]:
    """Role, path and SHA-256 of every model, image and video of a job's conditions; a file that
    several jobs share is read once."""
    weights = [source for kind in KINDS for source in kind.weights(job)]
    files = [(one.role, one.source, one.local(offline=model.offline)) for one in weights]
    images = [source.path for kind in KINDS for _, source in kind.images(job)]
    files += [("images", str(path), path) for path in images]
    listed = []
    for role, source, path in dict.fromkeys(files):
        sha256 = model.once("sha256", str(path), lambda path=path: digest(path))  # type: ignore[misc]
        named = str(Path(source).absolute()) if Path(source).exists() else source
        listed.append({"role": role, "path": named, "sha256": sha256})
    return listed
