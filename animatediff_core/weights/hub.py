"""Models on the Hugging Face hub: what their ids mean, and fetching only the files that are used.

An id is `ORG/REPOSITORY[@REVISION][/PATH/IN/IT]`. A revision is a branch, tag or commit; a slash in
it is written %2F, except in the hub's own `refs/pr/NUMBER`. Tokens are huggingface_hub's affair:
HF_TOKEN, or what `hf auth login` stored. Nothing here is ever run.
"""

import difflib
import errno
import glob
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ..errors import CheckpointError, MachineError
from .files import printable

log = logging.getLogger(__name__)
Choose = Callable[[Collection[str]], Collection[str]]
"""From the names of a repository's files, those that are needed."""

_ID = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>refs/pr/\d+|[^/@\s]+))?(?:/(?P<path>.+))?",
    re.ASCII,
)
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class HubId:
    """A repository, or one file in it, at a revision."""

    repository: str
    """ORG/REPOSITORY."""
    revision: str | None
    """None is the default branch."""
    path: str | None
    """A file inside, with slashes."""


def hub_id(source: str) -> HubId | None:
    """The repository and file that a text names; None if it is no hub id."""
    match = _ID.fullmatch(source)
    if match is None or not source.isprintable():
        return None
    path, revision = match["path"], match["revision"]
    if path is not None and any(part in ("", ".", "..") for part in path.split("/")):
        return None
    return HubId(match["repository"], unquote(revision) if revision else None, path)


def fetch_file(source: str, *, offline: bool) -> Path:
    """The file that an id with a path names, on this machine.

    Raises CheckpointError where the hub has no such file or wants a log-in, MachineError
    where it cannot be reached and the file was not fetched before.
    """
    wanted = hub_id(source)
    assert wanted is not None
    assert wanted.path is not None
    path = wanted.path

    def choose(names: Collection[str]) -> list[str]:
        if path not in names:
            close = difflib.get_close_matches(path, names, n=1)
            hint = f"did you mean {printable(close[0])}?" if close else "check its name"
            raise CheckpointError(f"{source}: the hub has no such file; {hint}")
        settings = str(PurePosixPath(path).with_name("adapter_config.json"))  # PEFT's, of a LoRA
        return [path, settings] if settings in names else [path]

    return fetch(source, choose, offline=offline) / path


def fetch(source: str, choose: Choose, *, offline: bool) -> Path:
    """The folder of a repository on this machine, with at least the files that `choose` takes.

    `choose` gets the names of all files and raises CheckpointError where what it needs is not
    among them. Without a connection, files that were fetched before are found.
    """
    wanted = hub_id(source)
    assert wanted is not None
    names, why_not = _listing(source, wanted, offline)
    if names is None:
        return _cached(source, wanted, choose, why_not)
    chosen = choose(names)
    from huggingface_hub import snapshot_download

    try:
        with _explained(source, wanted):
            return Path(
                snapshot_download(
                    wanted.repository,
                    revision=wanted.revision,
                    allow_patterns=[glob.escape(name) for name in chosen],
                )
            )
    except MachineError as error:
        raise MachineError(f"{error}; try again, it goes on where it stopped") from error


def is_offline(offline: bool = False) -> str | None:
    """The setting that forbids connections; None if none does."""
    if offline:
        return "--offline is set"
    from huggingface_hub import constants

    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    now = any(os.environ.get(name, "").upper() in _TRUE for name in variables)
    return "HF_HUB_OFFLINE is set" if now or constants.HF_HUB_OFFLINE else None


def unreachable(source: str, why: str) -> MachineError:
    """The error for a model that is on the hub and not on this machine."""
    return MachineError(
        f"{source}: is not in the local cache and {why}; connect to the hub once to fetch it "
        "(animatediff download), or name a local file or folder"
    )


def _listing(source: str, wanted: HubId, offline: bool) -> tuple[list[str] | None, str]:
    """All files of a repository, or None and why the hub cannot be asked.

    This one request fails at once where the hub is out of reach: the library's download of a
    file would try again for 23 seconds.
    """
    if setting := is_offline(offline):
        return None, setting
    from huggingface_hub import HfApi, constants

    try:
        with _explained(source, wanted):
            info = HfApi().model_info(
                wanted.repository, revision=wanted.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
    except MachineError as error:
        return None, str(error).removeprefix(f"{source}: ")
    return [sibling.rfilename for sibling in info.siblings or []], ""


def _cached(source: str, wanted: HubId, choose: Choose, why: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                wanted.repository,
                revision=wanted.revision,
                allow_patterns=[],  # only where it is; what it must hold is checked below
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError as error:
        raise unreachable(source, why) from error
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        choose(names)
    except CheckpointError as error:
        if wanted.path is not None:
            raise unreachable(source, why) from error
        raise MachineError(f"{error} (this is what the local cache holds, and {why})") from error
    if not why.endswith("is set"):
        log.warning("%s: %s; the files that were fetched before are used", source, why)
    return folder


@contextmanager
def _explained(source: str, wanted: HubId) -> Iterator[None]:
    """Context manager: errors of huggingface_hub become ours; no answer is a MachineError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.errors import HTTPError as NetworkError  # type: ignore[attr-defined]

    log_in = "log in with `hf auth login` or set HF_TOKEN"
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{source}: is gated; accept its terms at {constants.ENDPOINT}/{wanted.repository}, "
            f"then {log_in}"
        ) from error
    except RepositoryNotFoundError as error:
        local = "" if wanted.path is None else "no such local file exists, and "
        raise CheckpointError(
            f"{source}: {local}the hub has no such model, or it is private; check the name, and "
            f"for a private one {log_in}"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{source}: has no revision {wanted.revision}; name a branch, tag or commit of it"
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{source}: is no id of a model on the hub; check it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise CheckpointError(
                f"{source}: the hub refuses access with this token; {log_in} with one that may "
                "read it"
            ) from error
        raise MachineError(f"{source}: the hub fails (HTTP status {status})") from error
    except (NetworkError, OSError, RuntimeError) as error:  # RuntimeError is hf_xet's
        cause = _first_cause(error)
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise MachineError(f"{source}: cannot be stored ({cause.strerror})") from error
        raise MachineError(f"{source}: the hub cannot be reached ({printable(cause)})") from error


def _first_cause(error: BaseException) -> BaseException:
    """The error that began a chain of them: the system's own words."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error
