"""A small Hub on loopback: enough of its HTTP interface for the real huggingface_hub client to create, push and load models."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

# What a fault does to the request it picks: close the connection before or after the request is acted on, or take the
# whole server down.
REFUSE, LOSE_ANSWER, DIE = "refuse", "lose_answer", "die"
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Repo:
    """A model repo: commits of {path: sha256 of its blob}, the newest last."""

    private: bool = False
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def add(self, files: dict[str, str], message: str) -> str:
        name = hashlib.sha1(f"{len(self.commits)}{sorted(files.items())}".encode()).hexdigest()
        self.commits[name] = files
        self.messages.append(message)
        return name


class Hub:
    """State of the Hub and the server in front of it; the state outlives the server, which can die and come back.

    Attributes:
        tokens: {token: owner}.
        read_only: tokens that may not write.
        fault: called with method and path of every request; may return one of the three faults.
        requests: "METHOD /path" of every request that arrived.
        received: sha256 of every file that came whole by LFS, in their order.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.tokens: dict[str, str] = {}
        self.read_only: set[str] = set()
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.requests: list[str] = []
        self.received: list[str] = []
        self.lock = threading.Lock()
        self.port = 0
        self.server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, on the same port as before if there was one."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Closes the port; connections that are open are closed at their next request."""
        server, self.server = self.server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def make(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repo:
        """A repo with a first commit."""
        repo = self.repos[repo_id] = Repo(private)
        content = {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}
        repo.add({path: self.keep(data) for path, data in content.items()}, "initial commit")
        return repo

    def keep(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return name

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Contents at the newest commit."""
        repo = self.repos[repo_id]
        return {path: self.blobs[name] for path, name in repo.commits[repo.head].items()}


def upload_mode(path: str) -> str:
    """Large binaries go by LFS, as the `.gitattributes` of a new repo on the Hub say."""
    return "lfs" if path.endswith((".safetensors", ".png", "tokenizer.json")) else "regular"


def _oid(path: str, data: bytes) -> str:
    if upload_mode(path) == "lfs":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Keeps quiet."""

    def handle_any(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        if hub.server is None:
            self.close_connection = True
            return
        hub.requests.append(f"{self.command} {path}")
        fault = hub.fault(self.command, path)
        if fault in (REFUSE, DIE):
            # In the middle of what is sent, not before it.
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            if fault == DIE:
                hub.stop()
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            with hub.lock:
                status, headers, content = self.route(path, body)
        except _Refused as refused:
            status, headers = refused.status, {"X-Error-Message": refused.message, "Content-Type": "application/json"}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            content = json.dumps({"error": refused.message}).encode()
        if fault == LOSE_ANSWER:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    # ---- who asks

    def user(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if token not in self.hub.tokens:
            # Says the token again: no message of the client's may.
            raise _Refused(401, f"Invalid credentials in Authorization header: {token}")
        return self.hub.tokens[token]

    def may_write(self, owner: str) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.user() != owner or token in self.hub.read_only:
            raise _Refused(403, f"You don't have the rights to write under {owner} with {token}")

    def repo(self, repo_id: str) -> Repo:
        found = self.hub.repos.get(repo_id)
        if found is None or (found.private and self.user() != repo_id.partition("/")[0]):
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return found

    # ---- what is asked

    def route(self, path: str, body: bytes) -> Answer:
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            good = json.loads(body)["content"].startswith("---\n")
            return _json({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)
        if parts[:2] == ["api", "models"]:
            return self.api("/".join(parts[2:4]), parts[4:], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch("/".join(parts[:2]).removesuffix(".git"), json.loads(body))
        if parts[0] == "lfs":
            if hashlib.sha256(body).hexdigest() != parts[1]:
                raise _Refused(400, "The content is not what was announced")
            self.hub.received.append(self.hub.keep(body))
            return 200, {}, b""
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        raise _Refused(404, f"No such endpoint: {path}")

    def create(self, wanted: dict[str, Any]) -> Answer:
        owner = wanted.get("organization") or self.user()
        self.may_write(str(owner))
        repo_id = f"{owner}/{wanted['name']}"
        status = 409 if repo_id in self.hub.repos else 200
        if status == 200:
            self.hub.make(repo_id, private=wanted.get("visibility") == "private" or wanted.get("private") is True)
        return _json({"url": f"{self.hub.url}/{repo_id}", "id": repo_id, "error": "You already created this model repo"}, status)

    def api(self, repo_id: str, rest: list[str], body: bytes) -> Answer:
        repo = self.repo(repo_id)
        if rest[:1] == ["auth-check"]:
            self.may_write(repo_id.partition("/")[0])
            return _json({})
        if not rest or rest[0] == "revision":
            commit = self.commit_named(repo, rest[1] if rest else "main")
            siblings = [{"rfilename": path} for path in repo.commits[commit]]
            return _json({"id": repo_id, "modelId": repo_id, "sha": commit, "private": repo.private, "siblings": siblings})
        if rest[0] == "tree":
            return _json([self.entry(*item) for item in repo.commits[self.commit_named(repo, rest[1])].items()])
        if rest[0] == "preupload":
            self.may_write(repo_id.partition("/")[0])
            return _json({"files": [self.preupload(repo, entry) for entry in json.loads(body)["files"]]})
        if rest[0] == "commit":
            self.may_write(repo_id.partition("/")[0])
            return self.commit(repo_id, repo, [json.loads(line) for line in body.splitlines()])
        raise _Refused(404, f"No such endpoint: {rest[0]}")

    def commit_named(self, repo: Repo, revision: str) -> str:
        if revision == "main":
            return repo.head
        if revision not in repo.commits:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return revision

    def entry(self, path: str, blob: str) -> dict[str, Any]:
        data = self.hub.blobs[blob]
        lfs = {"lfs": {"oid": blob, "size": len(data), "pointerSize": 130}} if upload_mode(path) == "lfs" else {}
        return {"type": "file", "path": path, "size": len(data), "oid": _oid(path, data), **lfs}

    def preupload(self, repo: Repo, entry: dict[str, Any]) -> dict[str, Any]:
        path, blob = entry["path"], repo.commits[repo.head].get(entry["path"])
        oid = {} if blob is None else {"oid": _oid(path, self.hub.blobs[blob])}
        return {"path": path, "uploadMode": upload_mode(path), "shouldIgnore": False, **oid}

    def batch(self, repo_id: str, wanted: dict[str, Any]) -> Answer:
        self.may_write(repo_id.partition("/")[0])
        objects = []
        for item in wanted["objects"]:
            actions = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}}
            objects.append({**item, **({} if item["oid"] in self.hub.blobs else actions)})
        return _json({"transfer": "basic", "objects": objects})

    def commit(self, repo_id: str, repo: Repo, lines: list[dict[str, Any]]) -> Answer:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.head):
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[repo.head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = self.hub.keep(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise _Refused(400, f"The LFS object of {value['path']} was not uploaded")
                files[value["path"]] = value["oid"]
            elif value["path"] in files:
                del files[value["path"]]
            else:
                raise _Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        commit = repo.add(files, header["summary"])
        return _json({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit}", "commitOid": commit, "success": True})

    def resolve(self, repo_id: str, revision: str, path: str) -> Answer:
        repo = self.repo(repo_id)
        commit = self.commit_named(repo, revision)
        if path not in repo.commits[commit]:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        data = self.hub.blobs[repo.commits[commit][path]]
        headers = {"ETag": f'"{_oid(path, data)}"', "X-Repo-Commit": commit, "X-Linked-Size": str(len(data))}
        return 200, headers, data


def _json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
