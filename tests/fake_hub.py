"""A small hub on this machine, with the routes of the real one that huggingface_hub uses."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(k.encode() + v for k, v in sorted(files.items()))).hexdigest()


@dataclass
class Repository:
    """Files by revision name, and who may read them."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False
    private: bool = False

    def at(self, name: str) -> dict[str, bytes] | None:
        for revision, files in self.revisions.items():
            if name in (revision, commit_of(files)):
                return files
        return None


@dataclass
class Hub:
    """What is served, and what was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_good"
    requests: list[str] = field(default_factory=list)
    """METHOD PATH, and for a resumed download its range."""
    cut: set[str] = field(default_factory=set)
    """Paths whose next download breaks off in the middle."""
    broken: set[str] = field(default_factory=set)
    """Paths whose download is answered with status 500."""
    failing: bool = False
    """Answer everything with status 500."""
    url: str = ""

    def add(self, name: str, folder: Path | None = None, **files: bytes) -> Repository:
        """Serve a folder as a repository's main branch."""
        found = dict(files)
        for path in folder.rglob("*") if folder is not None else ():
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
        self.repositories[name] = Repository({"main": found})
        return self.repositories[name]

    def fetched(self) -> list[str]:
        """The files that were downloaded, each as often as it was."""
        marks = [r.partition("/resolve/")[2] for r in self.requests if r.startswith("GET")]
        return sorted(mark.partition("/")[2] for mark in marks if mark)


def serve(hub: Hub) -> ThreadingHTTPServer:
    """Start serving on a free port; `hub.url` says where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        self.answer(body=False)

    def do_GET(self) -> None:  # noqa: N802
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        extent = self.headers.get("Range", "")
        self.hub.requests.append(f"{self.command} {unquote(path)} {extent}".strip())
        if self.hub.failing:
            return self.refuse(500, "")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.hub.repositories.get(name)
        given = self.headers.get("Authorization", "")
        known = given == f"Bearer {self.hub.token}"
        if given and not known:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.private and not known):
            return self.refuse(404 if known else 401, "RepoNotFound")
        revision = unquote(rest[1]) if len(rest) > 1 else "main"
        files = repository.at(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        if api:
            return self.list(name, rest, files)
        if repository.gated and not known:
            return self.refuse(401, "GatedRepo")
        return self.file("/".join(map(unquote, rest[2:])), files, extent, body)

    def list(self, name: str, rest: list[str], files: dict[str, bytes]) -> None:
        if rest[:1] == ["tree"]:
            listed = [{"type": "file", "path": path, "size": len(content),
                       "oid": hashlib.sha1(content).hexdigest()}
                      for path, content in files.items()]  # fmt: skip
            return self.reply(200, json.dumps(listed).encode(), {})
        names = [{"rfilename": path} for path in files]
        info = {"id": name, "sha": commit_of(files), "siblings": names, "tags": []}
        return self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def file(self, path: str, files: dict[str, bytes], extent: str, body: bool) -> None:
        commit = {"X-Repo-Commit": commit_of(files)}
        if path not in files:
            return self.refuse(404, "EntryNotFound", more=commit)
        if body and path in self.hub.broken:
            return self.refuse(500, "")
        content = files[path]
        headers = {**commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                   "Accept-Ranges": "bytes"}  # fmt: skip
        status = 200
        if extent:
            start = int(extent.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        cut = body and path in self.hub.cut
        self.hub.cut.discard(path) if body else None
        return self.reply(status, content, headers, body=body, cut=cut)

    def refuse(self, status: int, code: str, message: str = "", more: dict | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, **(more or {})}
        self.reply(status, b"", {key: value for key, value in headers.items() if value})

    def reply(
        self, status: int, content: bytes, headers: dict[str, str], *, body: bool = True,
        cut: bool = False,
    ) -> None:  # fmt: skip
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
