"""A Hugging Face Hub on this machine: what the client asks it for, and no more."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


class FakeHub:
    """Repositories by id: folders whose content is their only commit's.

    Attributes:
        asked: Paths that were asked for.
        fetched: Files that were sent, as ``user/repo/file``.
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.url = ""

    def commit(self, repo: str) -> str:
        """Name the commit, another one for other content."""
        digest = hashlib.sha1(repo.encode())
        for path in self.files(repo):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self, repo: str) -> list[Path]:
        """List a repository's files."""
        paths = self.repositories[repo].rglob("*")
        return sorted(path for path in paths if path.is_file())

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer GET and HEAD."""
        path = unquote(urlparse(request.path).path).strip("/")
        self.asked.append(path)
        parts = path.split("/")
        headers: dict[str, str] = {}
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repo not in self.repositories:
            headers = {"X-Error-Code": "RepoNotFound"}
            return self.send(request, 404, b"{}", headers)
        folder, commit = self.repositories[repo], self.commit(repo)
        headers["X-Repo-Commit"] = commit
        revision = parts[5] if parts[0] == "api" and len(parts) > 5 else None
        if parts[0] != "api":
            revision = parts[3]
        if revision not in (None, "main", "v1", commit):
            headers["X-Error-Code"] = "RevisionNotFound"
            return self.send(request, 404, b"{}", headers)
        if parts[0] == "api" and parts[4:5] == ["tree"]:
            rows = [
                {
                    "type": "file",
                    "path": file.relative_to(folder).as_posix(),
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for file in self.files(repo)
            ]
            return self.send(request, 200, json.dumps(rows).encode(), headers)
        if parts[0] == "api":
            names = [file.relative_to(folder).as_posix() for file in self.files(repo)]
            info = {"id": repo, "sha": commit, "private": False, "tags": []}
            info |= {"siblings": [{"rfilename": name} for name in names]}
            return self.send(request, 200, json.dumps(info).encode(), headers)
        file = folder.joinpath(*parts[4:])
        content = file.read_bytes()
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if request.command == "GET":
            self.fetched.append(f"{repo}/{file.relative_to(folder).as_posix()}")
        return self.send(request, 200, content, headers)

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str],
    ) -> None:
        """Send an answer, without its content where only the head was asked for."""
        request.send_response(status)
        headers |= {"Content-Length": str(len(content)), "Connection": "close"}
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)


@contextmanager
def fake_hub(repositories: dict[str, Path], cache: Path, monkeypatch) -> Iterator:
    """Let this process's hub client know this hub alone, and an empty cache."""
    from huggingface_hub import constants

    hub = FakeHub(repositories)

    class Handler(BaseHTTPRequestHandler):
        """Hands requests to the hub."""

        def do_GET(self) -> None:
            """Answer."""
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    import huggingface_hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    api = huggingface_hub.HfApi.__init__
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "__init__",
        lambda self, endpoint=None, *args, **more: api(self, hub.url, *args, **more),
    )
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
