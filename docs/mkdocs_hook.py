"""A hook of mkdocs: files outside this folder that pages link to become part of the site.

On the site `../PATH` is `repository/PATH`, and the first page is README.md.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
_COPIES = "repository"


def on_files(files: Any, config: Any) -> Any:
    """Add README.md, the pages in the navigation from elsewhere, and all that pages link to."""
    files.append(_added(config, "README.md", "index.md"))
    for path in ("CHANGELOG.md", "CONTRIBUTING.md", "animatediff_core/models/tiny/README.md"):
        files.append(_added(config, path))
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for target in _LINK.findall(page.content_string):
            place = _place(page, target)
            if (ROOT / place).is_file() and files.get_file_from_path(_on_site(place)) is None:
                files.append(_added(config, place))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point every link to where its target is on the site."""
    folder = str(PurePosixPath(page.file.src_uri).parent)
    return _LINK.sub(lambda m: relpath(_on_site(_place(page.file, m[1])), folder), markdown)


def _place(file: File, target: str) -> str:
    """The path in the repository that a link of a page means."""
    source = Path(file.abs_src_path).relative_to(ROOT).parent
    return normpath(f"{source.as_posix()}/{target}")


def _on_site(place: str) -> str:
    if place == "README.md":
        return "index.md"
    return place.removeprefix("docs/") if place.startswith("docs/") else f"{_COPIES}/{place}"


def _added(config: Any, place: str, on_site: str = "") -> File:
    return File.generated(config, on_site or _on_site(place), abs_src_path=str(ROOT / place))
