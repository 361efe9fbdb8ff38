"""A small origin on Python's own HTTP server; prints its port, and serves until it is ended. It judges nothing."""

import gzip
import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECES = [b"piece %d\n" % number for number in range(1000)]
EVENTS = 5
EVENT_PAUSE = 0.2


class Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        """The body, however it is framed."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("content-length", 0))
        while left > 0:
            piece = self.rfile.read(min(left, 65536))
            if not piece:
                return
            left -= len(piece)
            yield piece

    def whole(self, kind, content, *more):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        for name, value in more:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def echo(self):
        """What came, in words."""
        digest, length = hashlib.sha256(), 0
        for piece in self.body():
            digest.update(piece)
            length += len(piece)
        said = {
            "method": self.command,
            "path": self.path,
            "length": length,
            "sha256": digest.hexdigest(),
            "fields": [[name.lower(), value] for name, value in self.headers.items()],
        }
        self.whole("application/json", json.dumps(said).encode())

    def begin_chunks(self, kind):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def chunk(self, piece):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def do_GET(self):
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if name == "chunked":
            self.begin_chunks("text/plain")
            for piece in PIECES:
                self.chunk(piece)
            self.chunk(b"")
        elif name == "events":
            self.begin_chunks("text/event-stream")
            for number in range(EVENTS):
                if number:
                    time.sleep(EVENT_PAUSE)
                self.chunk(b"data: %d\n\n" % number)
                self.wfile.flush()
            self.chunk(b"")
        elif name == "packed":
            self.whole("text/plain", gzip.compress(b"".join(PIECES)), ("content-encoding", "gzip"))
        elif name == "parting":
            # Framed by the end of the connection alone.
            self.send_response(200)
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(b"".join(PIECES))
            self.close_connection = True
        else:
            self.echo()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = echo


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


server = Server(("127.0.0.1", 0), Origin)
print(server.server_address[1], flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    sys.exit(0)
