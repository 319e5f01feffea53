"""A small S3-compatible server that fails as it is told: enough of the protocol for remit, and no more.

An object is listed, looked at, read by ranges, put on condition that it is not there, and removed. Faults are chosen by
method and key, for a number of requests or for good.
"""

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "remit"


@dataclass
class Fault:
    """What goes wrong with some requests."""

    #: GET, HEAD, PUT, LIST, DELETE; or READ for GET of an object, as opposed to a list.
    method: str
    #: Keys that it goes wrong with.
    key: str
    #: A status, as 500; or reset, half, slow, etag, other, size, garbage.
    kind: object
    #: How often; for good if it is None.
    times: int | None = None
    hits: int = field(default=0)


class Store:
    """The objects, the faults, and what was asked."""

    def __init__(self):
        self.objects, self.faults, self.log, self.lock = {}, [], [], threading.Lock()
        handler = type("Handler", (Handler,), {"store": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def put(self, key, body):
        self.objects[key] = (body, formatdate(usegmt=True))

    def fault(self, method, key):
        with self.lock:
            self.log.append((method, key))
            for fault in self.faults:
                if fault.method == method and re.search(fault.key, key) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    fault.hits += 1
                    return fault.kind
        return None

    def keys(self, prefix=""):
        return sorted(key for key in self.objects if key.startswith(prefix))


def etag(body):
    return f'"{hashlib.md5(body).hexdigest()}"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store = None

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", headers=(), length=None, head=False):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def error(self, status, code):
        self.answer(status, f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode(), head=self.command == "HEAD")

    def failed(self, kind):
        """Whether a fault has answered already."""
        if kind == "reset":
            self.close_connection = True
            self.connection.close()
        elif kind == "slow":
            time.sleep(30)
            self.close_connection = True
        elif isinstance(kind, int):
            self.error(kind, "SlowDown" if kind == 503 else "InternalError")
        else:
            return False
        return True

    def split(self):
        url = urlsplit(self.path)
        path = unquote(url.path).lstrip("/")
        bucket, _, key = path.partition("/")
        return key, parse_qs(url.query)

    def do_GET(self):
        key, query = self.split()
        if not key:
            return self.list(query)
        kind = self.store.fault("READ", key)
        if self.failed(kind):
            return
        found = self.store.objects.get(key)
        if found is None:
            return self.error(404, "NoSuchKey")
        body, modified = found
        tag = etag(body)
        if kind == "etag":
            tag = f'"{time.monotonic_ns():032x}"'
        if kind == "other":  # as long, with another content
            body = bytes(byte ^ 1 for byte in body)
        wanted = self.headers.get("If-Match")
        if wanted and wanted != tag:
            return self.error(412, "PreconditionFailed")
        status, headers = 200, [("ETag", tag), ("Last-Modified", modified)]
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(len(body), int(match[2] or len(body)) + 1)
            if start >= len(body):
                return self.error(416, "InvalidRange")
            if kind == "size":
                end = max(start + 1, end - 7)
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{len(body)}"))
            status, body = 206, body[start:end]
        if kind == "half":
            self.answer(status, body[: len(body) // 2], headers, length=len(body))
            self.close_connection = True
            return
        self.answer(status, body, headers)

    def do_HEAD(self):
        key, _ = self.split()
        kind = self.store.fault("HEAD", key)
        if self.failed(kind):
            return
        found = self.store.objects.get(key)
        if found is None:
            return self.error(404, "NoSuchKey")
        body, modified = found
        tag = f'"{time.monotonic_ns():032x}"' if kind == "etag" else etag(body)
        length = len(body) + 100 if kind == "size" else len(body)
        self.answer(200, b"", [("ETag", tag), ("Last-Modified", modified)], length=length, head=True)

    def list(self, query):
        prefix = query.get("prefix", [""])[0]
        kind = self.store.fault("LIST", prefix)
        if self.failed(kind):
            return
        if kind == "garbage":
            return self.answer(200, b"<ListBucketResult><Contents><Key>\x1b[2J")
        found, folders = [], set()
        for key in self.store.keys(prefix):
            rest = key[len(prefix) :]
            if "delimiter" in query and "/" in rest:
                folders.add(prefix + rest.split("/")[0] + "/")
            else:
                found.append(key)
        size = (lambda n: n + 1000) if kind == "size" else (lambda n: n)
        text = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{escape(etag(body))}</ETag>"
            f"<Size>{size(len(body))}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, (body, _) in ((key, self.store.objects[key]) for key in found)
        )
        if kind == "other":  # it lists what is not there
            text += "<Contents><Key>" + escape(prefix) + "ghost.jsonl</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"0\"</ETag><Size>5</Size></Contents>"
        text += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
        body = f'<?xml version="1.0"?><ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{text}</ListBucketResult>'
        self.answer(200, body.encode(), [("Content-Type", "application/xml")])

    def do_PUT(self):
        key, _ = self.split()
        kind = self.store.fault("PUT", key)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.failed(kind):
            return
        with self.store.lock:
            if self.headers.get("If-None-Match") == "*" and key in self.store.objects:
                return self.error(412, "PreconditionFailed")
            self.store.put(key, body)
        if kind == "lost":  # it is stored, and nobody is told
            self.close_connection = True
            self.connection.close()
            return
        self.answer(200, b"", [("ETag", etag(body))])

    def do_DELETE(self):
        key, _ = self.split()
        if self.failed(self.store.fault("DELETE", key)):
            return
        self.store.objects.pop(key, None)
        self.answer(204)
