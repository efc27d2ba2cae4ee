"""A loopback ModelScope hub that the real client talks to, with the faults of a real network on request."""

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

# What a test must not wait for: the client's own pauses between attempts. Read when the client is imported.
IMPATIENT_CLIENT = {
    "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "1",
    "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2",
    "MODELSCOPE_DOWNLOAD_RETRY_MAX_DELAY_SECONDS": "1",
    "MODELSCOPE_REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS": "1",
    "MODELSCOPE_DOWNLOAD_INTRA_CLOUD": "false",
    "MODELSCOPE_DOWNLOAD_CHUNK_SIZE_MB": "1",
}


@dataclass
class Request:
    """One request the hub has answered."""

    path: str
    file: str
    range_start: int | None
    sent_bytes: int = 0


@dataclass
class Fault:
    """What goes wrong for a file, or for the listing when `file` is "": for the next `times` requests."""

    file: str
    times: int = 1
    status: int = 0
    retry_after_s: int | None = None
    cut_after_bytes: int | None = None
    content: bytes | None = None
    hold: threading.Event | None = None
    hold_after_bytes: int = 0
    body: bytes = b""


@dataclass
class Hub:
    """Serves `files` as one model; `requests` is what the client asked, `faults` what shall go wrong."""

    model: str
    files: dict[str, bytes]
    commit: str = "3f1c" * 10
    lists_sha256: bool = True
    honours_ranges: bool = True
    listed_sizes: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fetched(self) -> list[str]:
        """Return the files that were asked for, in order."""
        return [request.file for request in self.requests if request.file]

    def take_fault(self, file: str) -> Fault | None:
        """Return what goes wrong with this request, and count it."""
        with self._lock:
            for fault in self.faults:
                if fault.file == file and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def listing(self) -> dict[str, Any]:
        """Return the file tree as ModelScope's `repo/files` answers it."""
        folders = sorted({path.rpartition("/")[0] for path in self.files} - {""})
        entries: list[dict[str, Any]] = [
            {"Name": name, "Path": name, "Type": "tree", "Size": 0} for name in folders
        ]
        for path, content in sorted(self.files.items()):
            entry: dict[str, Any] = {
                "Name": path.rpartition("/")[2],
                "Path": path,
                "Type": "blob",
                "Size": self.listed_sizes.get(path, len(content)),
                "Revision": self.commit,
                "CommittedDate": 1_764_000_000,
                "IsLFS": path.endswith(".safetensors"),
                "Mode": "33188",
            }
            if self.lists_sha256:
                entry["Sha256"] = hashlib.sha256(content).hexdigest()
            entries.append(entry)
        return {"Code": 200, "Success": True, "Message": "success", "Data": {"Files": entries}}

    @contextmanager
    def serving(self) -> Generator[str]:
        """Serve on a free loopback port while the block runs, and give its address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="hub")
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self.url
        finally:
            for fault in self.faults:
                if fault.hold is not None:
                    fault.hold.set()
            server.shutdown()
            thread.join()
            server.server_close()


def read_tree(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory by its relative path."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def read_pipeline(directory: Path) -> dict[str, bytes]:
    """Return the files a pipeline reads, without the NOTICE and the like that lie beside them for people."""
    files = read_tree(directory)
    return {path: content for path, content in files.items() if "/" in path or path == "model_index.json"}


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something another process does, which no event of ours can tell."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not come true")
        threading.Event().wait(0.01)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            prefix = f"/api/v1/models/{hub.model}"
            if url.path == f"{prefix}/repo/files":
                self.answer_listing(query)
            elif url.path == f"{prefix}/repo":
                self.answer_file(query)
            else:
                hub.requests.append(Request(url.path, "", None))
                self.send_json(404, {"Code": 404, "Success": False, "Message": "record not found"})

        def answer_listing(self, query: dict[str, str]) -> None:
            hub.requests.append(Request("/repo/files", "", None))
            fault = hub.take_fault("")
            if fault is not None and fault.status:
                self.send_fault(fault)
            elif fault is not None:
                self.send_bytes(200, fault.body, "text/html")
            elif query.get("Revision") not in ("master", hub.commit):
                self.send_json(404, {"Code": 404, "Success": False, "Message": "revision not found"})
            else:
                self.send_json(200, hub.listing())

        def answer_file(self, query: dict[str, str]) -> None:
            file = query["FilePath"]
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            asked_from = int(match[1]) if match else None
            match = match if hub.honours_ranges else None
            start = int(match[1]) if match else 0
            request = Request("/repo", file, asked_from)
            hub.requests.append(request)
            fault = hub.take_fault(file)
            if fault is not None and fault.status:
                self.send_fault(fault)
                return
            content = hub.files.get(file)
            if content is None:
                self.send_json(404, {"Code": 404, "Success": False, "Message": "file not found"})
                return
            if fault is not None and fault.content is not None:
                content = fault.content
            if start >= len(content) and match:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            part = content[start:]
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if fault is not None and fault.cut_after_bytes is not None:
                self.wfile.write(part[: fault.cut_after_bytes])
                self.wfile.flush()
                request.sent_bytes = fault.cut_after_bytes
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            try:
                if fault is not None and fault.hold is not None:
                    self.wfile.write(part[: fault.hold_after_bytes])
                    self.wfile.flush()
                    request.sent_bytes = fault.hold_after_bytes
                    hub.held.set()
                    fault.hold.wait(60)
                    part = part[fault.hold_after_bytes :]
                self.wfile.write(part)
                request.sent_bytes += len(part)
            except OSError:  # the client was killed, as the test wants
                self.close_connection = True

        def send_fault(self, fault: Fault) -> None:
            body = json.dumps({"Code": fault.status, "Success": False, "Message": "no"}).encode()
            self.send_response(fault.status)
            if fault.retry_after_s is not None:
                self.send_header("Retry-After", str(fault.retry_after_s))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_json(self, status: int, value: object) -> None:
            self.send_bytes(status, json.dumps(value).encode(), "application/json")

        def send_bytes(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
