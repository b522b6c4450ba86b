# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A hub on this machine: what Hugging Face's hub answers to its own client and to ours."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

TOKEN = "hf_secretsecret"


@dataclass
class Repo:
    """A repository: commits (file to bytes) and branches (name to commit)."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main", keep: bool = True) -> str:
        """Add files, or replace all; returns the commit."""
        before = self.commits.get(self.branches.get(branch, ""), {}) if keep else {}
        after = {**before, **files}
        digest = hashlib.sha1(f"{len(self.commits)} {sorted(after)}".encode()).hexdigest()
        self.commits[digest] = after
        self.branches[branch] = digest
        return digest


class Hub:
    """The repositories and what the server was asked.

    ``faults``: by the end of a path what is answered instead, once each: ``("cut", bytes)``,
    ``("status", number)`` or ``("bytes", data)``.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: dict[str, list[tuple]] = {}
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.authorized: list[str] = []  # paths that a token was sent to
        self.address = ""
        self.other = ""  # the same server by another name: that of the files

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]

    def add(self, name: str, folder: Path, branch: str = "main") -> str:
        """Put the files of a folder into a repository; returns the commit."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        return self.repos.setdefault(name, Repo()).commit(files, branch, keep=False)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(
        self, status: int, body: Any = b"", cut: int | None = None, **headers: object
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        self.close_connection = cut is not None or self.close_connection

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def handle_any(self) -> None:
        hub = self.hub
        path = self.path.partition("?")[0]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.headers.get("Authorization"):
            hub.authorized.append(path)
        for end, faults in hub.faults.items():
            if faults and path.endswith(end):
                kind, value = faults.pop(0)
                if kind == "status":
                    return self.answer(value, b"no")
                return self.send(value) if kind == "bytes" else self.find(path, cut=value)
        self.find(path)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def find(self, path: str, cut: int | None = None) -> None:
        if match := re.fullmatch(r"/(?:cdn|upload)/([0-9a-f]{64})", path):
            if self.command == "PUT":
                assert hashlib.sha256(self.body).hexdigest() == match[1]
                self.hub.objects[match[1]] = self.body
                return self.answer(200)
            return self.send(self.hub.objects[match[1]], cut)
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        match = re.fullmatch(
            r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git/info/lfs/objects/(batch))?"
            r"(?:/(revision|resolve|preupload|commit|branch)/([^/]+)(?:/(.+))?)?",
            path,
        )
        repo = self.hub.repos.get(match[1]) if match else None
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if match is None or repo is None or (repo.private and not allowed):
            return self.refuse(404 if allowed else 401, "RepoNotFound")
        if match[2]:
            return self.batch()
        verb, revision, file = match[3], unquote(match[4] or "main"), match[5]
        if self.command == "POST" and not allowed:
            return self.answer(403, {"error": "no write access"})
        if verb == "branch":
            known = revision in repo.branches
            repo.branches.setdefault(revision, repo.branches["main"])
            return self.answer(409 if known else 200, {})
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound")
        if verb == "preupload":
            asked = json.loads(self.body)["files"]
            modes = [
                dict(path=one["path"], uploadMode=upload_mode(one["path"]), shouldIgnore=False)
                for one in asked
            ]
            return self.answer(200, {"files": modes})
        if verb == "commit":
            return self.commit(match[1], repo, revision)
        if repo.gated and verb == "resolve":
            return self.refuse(403, "GatedRepo")
        if verb != "resolve":
            files = [{"rfilename": name} for name in repo.commits[commit]]
            about = dict(id=match[1], sha=commit, private=repo.private, siblings=files)
            return self.answer(200, about)
        data = repo.commits[commit].get(unquote(file))
        if data is None:
            return self.refuse(404, "EntryNotFound")
        if upload_mode(file) == "regular":
            return self.send(data, cut, X_Repo_Commit=commit)
        digest = hashlib.sha256(data).hexdigest()
        self.hub.objects[digest] = data
        linked = dict(X_Linked_Etag=f'"{digest}"', X_Linked_Size=len(data), X_Repo_Commit=commit)
        return self.answer(302, b"", Location=f"{self.hub.other}/cdn/{digest}", **linked)

    def send(self, data: bytes, cut: int | None = None, **headers: object) -> None:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data)  # as git names it
        headers["ETag"] = f'"{blob.hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[start:], cut, **headers)
        return self.answer(200, data, cut, **headers)

    def create(self, asked: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            return self.answer(409, {"error": "You already created this model repo"})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repos[name] = Repo(private)
        self.hub.repos[name].commit({".gitattributes": b""})
        return self.answer(200, {"url": f"{self.hub.address}/{name}"})

    def batch(self) -> None:
        objects = [
            dict(one, actions={"upload": {"href": f"{self.hub.other}/upload/{one['oid']}"}})
            for one in json.loads(self.body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name: str, repo: Repo, branch: str) -> None:
        files = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                files[item["value"]["path"]] = self.hub.objects[item["value"]["oid"]]
        oid = repo.commit(files, branch)
        url = f"{self.hub.address}/{name}/commit/{oid}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})


def upload_mode(name: str) -> str:
    return "lfs" if name.endswith(".safetensors") else "regular"


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub that clients of this process find, with a cache and a home of their own in a folder."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    hub.other = f"http://localhost:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        patch.delenv("HF_TOKEN", raising=False)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.setenv("HF_HOME", str(folder / "home"))
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("MMSEG_RESNEST_CACHE", str(folder / "cache"))
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
