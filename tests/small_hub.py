"""A small hub on localhost: what huggingface_hub and dl_slicer.hub ask a real one, and no more."""

import hashlib
import io
import json
import os
import re
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

DATASET = "datasets/issai/DL-SLICER-dataset"
MODELS = "issai/DL-SLICER-models"
REVISION = "0123456789abcdef0123456789abcdef01234567"
os.environ["NO_PROXY"] = "127.0.0.1"
LARGE = 1000  # bytes, from where a file is one of git's large ones
PAGE = 40  # entries in an answer


class Hub:
    """What lies on the hub, how it misbehaves, and what it was asked."""

    def __init__(self, files, name):
        self.files = dict(files)  # {path: bytes}
        self.name = name
        self.sent = 0  # bytes of files
        self.asked = []  # (method, path, range, authorization)
        self.breaks = 0  # connections that are cut, each after some bytes
        self.cut_after = 3000  # bytes
        self.pause = 0.0  # seconds before each piece
        self.knows_ranges = True
        self.wants_token = None
        self.refuses = {}  # {path: (status, headers)} of any request
        self.page = None  # what is answered to everything
        self.elsewhere = None  # the address of another server, which has the files
        self.lock = threading.Lock()

    def ranges(self):
        return [wanted for _, path, wanted, _ in self.asked if "/resolve/" in path]


def digest(content):
    """The checksum as the hub lists it, of large and of small files."""
    if len(content) >= LARGE:
        size = len(content)
        oid = hashlib.sha256(content).hexdigest()
        return {"oid": "0" * 40, "lfs": {"oid": oid, "size": size, "pointerSize": 130}}
    return {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # each answer would wait 40 ms

    def do_GET(self):
        hub = self.server.hub
        url = urlsplit(self.path)
        path = unquote(url.path)
        token = self.headers.get("Authorization")
        with hub.lock:
            hub.asked.append(("GET", path, self.headers.get("Range"), token))
        for part, (status, headers) in hub.refuses.items():
            if part in path:
                return self.answer(status, b"{}", headers)
        if hub.page is not None:
            return self.answer(200, hub.page)
        if hub.wants_token and "/resolve/" in path and token != f"Bearer {hub.wants_token}":
            return self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
        api = hub.name if hub.name.startswith("datasets/") else f"models/{hub.name}"
        if path == f"/api/{api}/revision/main" or path == f"/api/{api}":
            return self.answer_json({"id": hub.name, "sha": REVISION, "private": False})
        if path == f"/api/{api}/tree/{REVISION}":
            return self.answer_tree(url)
        found = re.fullmatch(f"/{re.escape(hub.name)}/resolve/{REVISION}/(.*)", path, re.DOTALL)
        if found and found[1] in hub.files:
            if hub.elsewhere:
                return self.answer(302, b"", {"Location": f"{hub.elsewhere}{self.path}"})
            return self.answer_file(hub.files[found[1]])
        self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer_json(self, content, headers=()):
        self.answer(
            200, json.dumps(content).encode(), {"Content-Type": "application/json", **dict(headers)}
        )

    def answer_tree(self, url):
        """Some entries, and the address of the next ones."""
        files = self.server.hub.files
        entries = [
            {"type": "file", "path": path, "size": len(content), **digest(content)}
            for path, content in sorted(files.items())
        ]
        folders = {path.rpartition("/")[0] for path in files} - {""}
        entries += [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        found = re.search(r"cursor=(\d+)", url.query)
        begin = int(found[1]) if found else 0
        link = f'<http://{self.headers["Host"]}{url.path}?cursor={begin + PAGE}>; rel="next"'
        more = {"Link": link} if begin + PAGE < len(entries) else {}
        self.answer_json(entries[begin : begin + PAGE], more)

    def answer_file(self, content):
        hub = self.server.hub
        begin = 0
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if found and hub.knows_ranges:
            begin = int(found[1])
            self.send_response(206)
            end = len(content) - 1
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        with hub.lock:
            is_cut = hub.breaks > 0
            hub.breaks -= is_cut
        content = content[begin:]
        if is_cut:
            content = content[: hub.cut_after]
        with hub.lock:
            hub.sent += len(content)
        for start in range(0, len(content), 1000) if hub.pause else ():
            self.server.gone.wait(hub.pause)
            self.wfile.write(content[start : start + 1000])
            self.wfile.flush()
        if not hub.pause:
            self.wfile.write(content)
        if is_cut:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, address):
        pass  # a client that was killed


@contextmanager
def serving(files, name=DATASET):
    """Serve files; gives the hub, with its address."""
    server = Server(("127.0.0.1", 0), Handler)
    server.gone = threading.Event()
    server.hub = Hub(files, name)
    server.hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.hub
    finally:
        server.gone.set()
        server.shutdown()
        server.server_close()
        thread.join()


def zipped(files):
    """The bytes of a zip archive of {path: bytes}."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return out.getvalue()


def tarred(files, packing=""):
    """The bytes of a tar archive of {path: bytes}, or {TarInfo: bytes}. packing: "gz" or ""."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{packing}") as archive:
        for path, content in files.items():
            info = path if isinstance(path, tarfile.TarInfo) else tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()
