"""A Hub on 127.0.0.1 that speaks the protocol of huggingface_hub for reading: search, model info, files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


class Hub:
    """Repositories that are folders, each with tags.

    Attributes:
        requests: every path that was asked for.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, tuple[Path, list[str]]] = {}
        self.requests: list[str] = []
        self.url = ""

    def add(self, name: str, folder: Path, tags: list[str]) -> None:
        self.repositories[name] = (folder, tags)

    def info(self, name: str) -> dict:
        folder, tags = self.repositories[name]
        siblings = [
            {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        identity = {"id": name, "modelId": name, "sha": COMMIT, "tags": tags, "private": False, "downloads": 1}
        return identity | {"siblings": siblings, "cardData": {"license": "cc-by-nc-sa-4.0"}}


def create_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, value) -> None:
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def do_GET(self) -> None:  # noqa: N802
            hub.requests.append(self.path)
            url = urlparse(self.path)
            parts = unquote(url.path).strip("/").split("/")
            query = parse_qs(url.query)
            if parts[:2] == ["api", "models"] and len(parts) == 2:
                wanted = query.get("filter", [])
                found = [name for name, (_, tags) in hub.repositories.items() if set(wanted) <= set(tags)]
                return self.answer_json([hub.info(name) for name in found])
            if parts[:2] == ["api", "models"]:
                name, rest = "/".join(parts[2:4]), parts[4:]
                if name not in hub.repositories:
                    return self.answer(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Not found")
                if rest[:1] == ["tree"]:
                    entries = [
                        {"type": "file", "path": one["rfilename"], "size": one["size"], "oid": COMMIT}
                        for one in hub.info(name)["siblings"]
                    ]
                    return self.answer_json(entries)
                return self.answer_json(hub.info(name))
            if len(parts) > 4 and parts[2] == "resolve":
                folder = hub.repositories["/".join(parts[:2])][0]
                path = folder / "/".join(parts[4:])
                if not path.is_file():
                    return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                data = path.read_bytes()
                return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)
            return self.answer(404, b"")

        do_HEAD = do_GET  # noqa: N815

    return Handler


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), create_handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
