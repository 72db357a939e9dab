"""A hub of data sets on this machine: what `datasets` asks of huggingface.co to stream parquet files of a revision."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq


def parquet(rows: list[dict]) -> bytes:
    """The bytes of a parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


@dataclass
class FakeHub:
    """Serves `files`: {data set: {revision: {path: bytes}}}; of the data sets `failing` it gives no parquet file.

    `asked` lists (method, path) of every request.
    """

    files: dict[str, dict[str, dict[str, bytes]]]
    failing: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            fake = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub

    def log_message(self, *arguments) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        self._answer(body)

    def do_GET(self) -> None:
        self._answer("")

    do_HEAD = do_GET

    def _answer(self, body: str) -> None:
        path = unquote(self.path.split("?")[0])
        self.fake.asked.append((self.command, path))
        if match := re.fullmatch(r"/datasets/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        match = re.fullmatch(r"/api/datasets/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?", path)
        if not match or match[1] not in self.fake.files:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        name, what, revision, below = match.groups()
        revisions = self.fake.files[name]
        if revision and revision not in revisions:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        revision = revision or next(iter(revisions))
        entries = [
            {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for file, data in revisions[revision].items()
        ]
        if what == "tree":
            return self._json(_listed(entries, f"{below}/" if below else "", "recursive=true" in self.path.lower()))
        if what == "paths-info":
            return self._json([e for e in entries if e["path"] in body or e["path"].replace("/", "%2F") in body])
        siblings = [{"rfilename": e["path"]} for e in entries]
        self._json({"id": name, "sha": revision, "siblings": siblings, "private": False, "tags": []})

    def _file(self, name: str, revision: str, path: str) -> None:
        data = self.fake.files.get(name, {}).get(revision, {}).get(path)
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if name in self.fake.failing and path.endswith(".parquet"):
            return self._send(503, b"", {})
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or ""):
            first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._send(206, data[first : last + 1], headers)
        self._send(200, data, headers)

    def _json(self, value) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _listed(entries: list[dict], folder: str, recursive: bool) -> list[dict]:
    """What lies in `folder` ("" or ending with a slash): files and folders, of subfolders too if `recursive`."""
    inside = [e for e in entries if e["path"].startswith(folder)]
    names = {e["path"][len(folder) :].split("/")[0] for e in inside if "/" in e["path"][len(folder) :]}
    folders = [{"type": "directory", "path": folder + name, "oid": "0" * 40} for name in sorted(names)]
    return folders + [e for e in inside if recursive or "/" not in e["path"][len(folder) :]]
