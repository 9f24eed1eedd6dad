"""A Hub on 127.0.0.1 that speaks huggingface_hub's protocol: search, info, files, LFS, commits, Spaces, faults."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import yaml

LFS_SUFFIXES = (".safetensors", ".webp", ".png")
TOKEN = "hf_test"


def git_oid(data: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """Commits from the first to the last, each a dictionary of files, and which one a branch is at."""

    private: bool = False
    tags: list[str] = field(default_factory=list)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit with all of these files."""
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch or a commit's name stands for."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def card(self, files: dict[str, bytes]) -> dict:
        """The front matter of the README."""
        text = files.get("README.md", b"").decode()
        return (yaml.safe_load(text.split("---")[1]) or {}) if text.startswith("---") else {}


class Hub:
    """The repositories, what was asked for, and what is to go wrong.

    Attributes:
        repositories: by name; Spaces as `spaces/USER/NAME`.
        requests: method and path of every request.
        uploaded: bytes of LFS files that were really sent, by sha256.
        faults: (part of a path, status) of requests to be refused once each; 0 cuts the body off, -1 sends a page.
        delay: seconds that every answer waits.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.uploaded: dict[str, bytes] = {}
        self.faults: list[tuple[str, int]] = []
        self.delay = 0.0
        self.url = ""

    def add(self, name: str, folder: Path, tags: list[str], private: bool = False) -> Repository:
        """A repository with the files of a folder."""
        repository = self.repositories[name] = Repository(private, tags)
        repository.commit(
            {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
        )
        return repository

    def info(self, name: str, revision: str = "main") -> dict:
        repository = self.repositories[name]
        commit = repository.resolve(revision)
        files = repository.commits[commit] if commit else {}
        card = repository.card(files)
        tags = [*repository.tags, *card.get("tags", [])]
        siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(files.items())]
        identity = {"id": name, "modelId": name, "sha": commit, "tags": tags, "private": repository.private}
        return identity | {"downloads": 1, "siblings": siblings, "cardData": card or {"license": "cc-by-nc-sa-4.0"}}


class Handler(BaseHTTPRequestHandler):
    """One request; `hub` is set by the class made for a server."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def missing(self, code: str = "RepoNotFound") -> None:
        self.answer(404, b"{}", X_Error_Code=code, X_Error_Message="Not found")

    def allowed(self, repository: Repository | None) -> bool:
        return repository is not None and (not repository.private or TOKEN in self.headers.get("Authorization", ""))

    def has_fault(self) -> bool:
        """Whether something is to go wrong with this request; then it has been answered so."""
        for fault in list(self.hub.faults):
            if fault[0] not in self.path or self.command == "HEAD":
                continue
            self.hub.faults.remove(fault)
            if fault[1] == -1:
                self.answer(200, b"<html>Log in to the network</html>", Content_Type="text/html")
            elif fault[1]:
                self.answer(fault[1], b"{}", Retry_After="0")
            else:
                self.answer(200, b"short", Content_Length="100000", X_Repo_Commit="0" * 40)
                self.close_connection = True
            return True
        return False

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        time.sleep(self.hub.delay)
        if self.has_fault():
            return None
        url = urlparse(self.path)
        parts, query = unquote(url.path).strip("/").split("/"), parse_qs(url.query)
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts == ["api", "validate-yaml"]:
            return self.answer_json({"errors": [], "warnings": []})
        if parts == ["api", "models"]:
            wanted = set(query.get("filter", []))
            models = {name: one for name, one in self.hub.repositories.items() if not name.startswith("spaces/")}
            public = [self.hub.info(name) for name, one in models.items() if not one.private]
            return self.answer_json([one for one in public if wanted <= set(one["tags"])])
        if parts[:1] == ["upload"]:
            self.hub.uploaded[parts[1]] = body
            return self.answer(200)
        if url.path.endswith(".git/info/lfs/objects/batch"):
            return self.lfs_batch(json.loads(body))
        if parts[:2] == ["api", "models"] and len(parts) > 3:
            return self.api("/".join(parts[2:4]), parts[4:], body)
        if parts[:2] == ["api", "spaces"] and len(parts) > 3:
            return self.api("/".join(parts[1:4]), parts[4:], body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.missing()

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def create(self, request: dict) -> None:
        space = "spaces/" if request.get("type") == "space" else ""
        name = space + "/".join(filter(None, (request.get("organization"), request["name"])))
        if TOKEN not in self.headers.get("Authorization", ""):
            return self.answer(401, b"{}")
        if name in self.hub.repositories:
            return self.answer_json({"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}, 409)
        private = request.get("private") or request.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=bool(private))
        self.hub.repositories[name].commit({})
        return self.answer_json({"url": f"{self.hub.url}/{name}", "name": name, "id": name.removeprefix("spaces/")})

    def lfs_batch(self, request: dict) -> None:
        objects = []
        for one in request["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}", "header": {}}}
            known = one["oid"] in self.hub.uploaded
            objects.append(one | {"authenticated": True} | ({} if known else {"actions": action}))
        self.answer_json({"transfer": "basic", "objects": objects})

    def api(self, name: str, rest: list[str], body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        if not self.allowed(repository):
            return self.missing()
        if rest[:1] == ["preupload"]:
            files = repository.commits[repository.resolve(rest[1]) or repository.branches["main"]]
            answers = []
            for one in json.loads(body)["files"]:
                mode = "lfs" if one["path"].endswith(LFS_SUFFIXES) else "regular"
                old = files.get(one["path"])
                oid = None if old is None else hashlib.sha256(old).hexdigest() if mode == "lfs" else git_oid(old)
                answers.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return self.answer_json({"files": answers})
        if rest[:1] == ["commit"]:
            return self.commit(name, rest[1], body, "create_pr=1" in self.path)
        if rest[:1] == ["branch"]:
            repository.branches[rest[1]] = repository.branches["main"]
            return self.answer(200, b"{}")
        if rest[:1] in (["tree"], ["revision"]) and repository.resolve(rest[1]) is None:
            return self.missing("RevisionNotFound")
        revision = rest[1] if rest[:1] in (["tree"], ["revision"]) else "main"
        if rest[:1] == ["tree"]:
            files = repository.commits[repository.resolve(revision)]
            return self.answer_json(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
                    for path, data in files.items()
                ]
            )
        return self.answer_json(self.hub.info(name, revision))

    def commit(self, name: str, branch: str, body: bytes, create_pr: bool) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.commits[repository.branches.get(branch, repository.branches["main"])])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files, "refs/pr/1" if create_pr else branch)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        request = {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/1"} if create_pr else {}
        self.answer_json({"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""} | request)

    def file(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        if not self.allowed(repository):
            return self.missing()
        commit = repository.resolve(revision)
        if commit is None:
            return self.missing("RevisionNotFound")
        if path not in repository.commits[commit]:
            return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data = repository.commits[commit][path]
        headers = {"ETag": f'"{git_oid(data)}"', "X_Repo_Commit": commit}
        if path.endswith(LFS_SUFFIXES):
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"ETag": f'"{digest}"', "X_Linked_ETag": f'"{digest}"', "X_Linked_Size": str(len(data))}
        return self.answer(200, data, **headers)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub for the time of a test."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
