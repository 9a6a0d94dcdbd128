"""A Hugging Face Hub on loopback, in memory, for tests: the real clients talk to it through `HF_ENDPOINT`.

    with HubServer() as hub:
        sha = hub.add("models", "tester/tiny", {"config.json": b"{}"})
        subprocess.run([...], env={**os.environ, **hub.env(home=tmp_path)})
        assert "model.safetensors" in hub.files("models", "tester/student")
        hub.fail(429, path="/commit/", retry_after=1, times=2)

The clients read `HF_ENDPOINT` when they are imported: give `hub.env()` to a subprocess.
Standard library and PyYAML only.
"""

import base64
import contextlib
import hashlib
import json
import re
import secrets
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hub_protocol import BAD_TOKEN, GITATTRIBUTES, Protocol, Refusal, Repo

FAULTS = ("refuse", "timeout", "cut")


@dataclass
class Fault:
    mode: str | int
    path: str
    method: str | None
    times: int | None
    retry_after: float | None
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self):
        if self.mode not in FAULTS and not isinstance(self.mode, int):
            raise ValueError(f"fault {self.mode!r} is unknown: choose one of {FAULTS} or an HTTP status.")

    def hits(self, method, target):
        if self.times == 0 or self.method not in (None, method) or not re.search(self.path, target):
            return False
        self.times = self.times and self.times - 1
        return True


class HubServer(Protocol):
    """See the module's docstring. `user` owns `token` (write) and `read_token` (read only).

    `repos` maps (kind, id) to Repo, `lfs` sha256 to bytes. `log` lists (method, target, status); the status
    is the fault's name where there was no whole answer. `accepted` is the set of (kind, id) of the gated
    repositories whose terms the user has accepted. kind is "models", "datasets" or "spaces".
    """

    def __init__(self):
        self.user = "tester"
        self.token, self.read_token = ("hf_" + secrets.token_hex(17) for _ in range(2))
        self.repos, self.lfs, self.log, self.accepted = {}, {}, [], set()
        self.faults, self.received, self.port = [], [], 0
        self.lock, self.server = threading.RLock(), None

    # -- for tests ---------------------------------------------------------------------------------

    def start(self):
        """Listen: on a free port the first time, on the same port after `stop()`."""
        if self.server:
            return self
        self.server = Listener(("127.0.0.1", self.port), Handler)
        self.server.hub, self.port = self, self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        """Stop listening (clients get "connection refused") and close every connection; contents stay."""
        for fault in self.faults:
            fault.over.set()
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def env(self, home=None, *, token="", **more):
        """Variables for a client's environment. `home` becomes HF_HOME; token=None is an anonymous client."""
        env = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token if token == "" else token or "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        if home is not None:
            parts = {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "HF_MODULES_CACHE": "modules"}
            env |= {"HF_HOME": str(home)} | {k: str(Path(home) / v) for k, v in parts.items()}
        return env | {k: str(v) for k, v in more.items()}

    def add(self, kind, repo_id, content, *, gated=False, private=False, title="Add files", branch="main"):
        """Commit a folder or a {path: bytes} dict as the whole content of a repository; returns the sha."""
        if not isinstance(content, dict):
            root = Path(content)
            content = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        with self.lock:
            repo = self.repos.setdefault((kind, repo_id), Repo(kind, repo_id))
            repo.gated, repo.private = gated, private
            self.lfs |= {hashlib.sha256(data).hexdigest(): data for data in content.values()}
            return repo.commit({".gitattributes": GITATTRIBUTES} | content, title, branch)

    def files(self, kind, repo_id, revision="main"):
        """{path: bytes} at a revision; includes the `.gitattributes` which the Hub makes."""
        try:
            return dict(self.repos[kind, repo_id].at(revision).files)
        except Refusal as refusal:
            raise KeyError(f"{repo_id} has no revision {revision}") from refusal

    def everything(self):
        """All bytes that clients sent: request lines, bodies, and what bodies carry as base64. No headers."""
        parts = list(self.received)
        for body in self.received:
            for encoded in re.findall(rb'"(?:content|sample)":\s*"([A-Za-z0-9+/=]+)"', body):
                parts.append(base64.b64decode(encoded + b"=" * (-len(encoded) % 4)))
        return b"\n".join(parts)

    def fail(self, mode, *, path="", method=None, times=None, retry_after=None):
        """Break the requests whose target (path and query, unquoted) matches `path`, until `heal()`.

        mode: "refuse" closes the connection without an answer; "timeout" never answers; "cut" sends the
        headers and never more than the first half of the file (of an upload: reads half, then closes); an
        int answers that HTTP status, with a Retry-After header of `retry_after` seconds where given.
        Uploads and commits are then not carried out. times: only the first n matching requests.
        """
        self.faults.append(Fault(mode, path, method, times, retry_after))

    def heal(self):
        for fault in self.faults:
            fault.over.set()
        self.faults = []


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args):
        self.open = set()
        super().__init__(*args)

    def get_request(self):
        connection, address = super().get_request()
        self.open.add(connection)
        return connection, address

    def shutdown_request(self, request):
        self.open.discard(request)
        super().shutdown_request(request)

    def server_close(self):
        super().server_close()
        for connection in list(self.open):  # keep-alive connections outlive the listener
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        pass  # a client went away


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def serve(self):
        hub, target = self.server.hub, unquote(self.path)
        with hub.lock:
            fault = next((f for f in hub.faults if f.hits(self.command, target)), None)
        mode = fault and fault.mode
        upload = self.command in ("POST", "PUT")
        body = self.read_body(half=mode == "cut" and upload)
        hub.received.append(f"{self.command} {target}".encode() + b"\n" + body)
        if mode == "timeout":
            hub.log.append((self.command, target, mode))
            fault.over.wait()
        if mode in ("refuse", "timeout") or (mode == "cut" and upload):
            if mode != "timeout":
                hub.log.append((self.command, target, mode))
            self.close_connection = True
            return
        try:
            if isinstance(mode, int):
                after = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                raise Refusal(mode, None, BAD_TOKEN if mode == 401 else f"injected status {mode}", **after)
            url = urlsplit(self.path)
            status, headers, answer = hub.answer(self.command, url.path, parse_qs(url.query), self.headers, body)
        except Refusal as refusal:
            status, headers, answer = refusal.status, refusal.headers, refusal.body
        except (KeyError, TypeError, ValueError) as error:
            status, headers, answer = 400, {}, {"error": f"{type(error).__name__}: {error}"}
        hub.log.append((self.command, target, mode if mode == "cut" else status))
        self.send(status, headers, answer, cut=mode == "cut")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def read_body(self, half):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if half:
                    break
            else:
                self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if half else length)

    def send(self, status, headers, answer, cut):
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if cut and self.command != "HEAD":
            # count from the start of the file: a client that resumes with a range never gets the second half
            start, _, total = re.fullmatch(
                r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", f"bytes 0-0/{len(body)}")
            ).groups()
            body = body[: max(int(total) // 2 - int(start), 0)]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)
