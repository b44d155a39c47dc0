"""A proxy on the loopback before the server of S3: replies get lost here."""

import contextlib
import http.client
import http.server
import socket
import struct
import threading

PASS = "pass"  # as if there were no proxy
LOST = "lost"  # the server does it, its reply never comes
UNSENT = "unsent"  # it never reaches the server
BUSY = "503"
CONFLICT = "409"
DENIED = "403"
CUT = "cut"  # half of the reply's body, then the connection ends
CODES = {
    BUSY: "SlowDown",
    CONFLICT: "ConditionalRequestConflict",
    DENIED: "AccessDenied",
}


class Proxy:
    """Forwards requests, but for those of `method` that `fates` decides, in order."""

    def __init__(self, upstream_port):
        self.upstream_port = upstream_port
        self.method, self.fates = "PUT", []
        self.seen = []
        self.without_header = None
        self.status_for = {}
        self.meanwhile = None
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def decide(self, method, *fates):
        self.method, self.fates, self.seen = method, list(fates), []

    def handle(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fate = PASS
        if self.method in (request.command, "ANY"):
            fate = self.fates.pop(0) if self.fates else PASS
            self.seen.append(fate)
        if fate == UNSENT:
            return self.reset(request)
        if fate in CODES:
            code = CODES[fate]
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
            return self.reply(request, int(fate), {}, text.encode())
        status, headers, data = self.forward(request, body)
        if fate == LOST:
            if self.meanwhile is not None:
                self.meanwhile()
            return self.reset(request)
        half = len(data) // 2 if fate == CUT else None
        return self.reply(
            request, self.status_for.get(status, status), headers, data, half
        )

    def forward(self, request, body):
        headers = {
            key: value
            for key, value in request.headers.items()
            if key.lower() not in ("expect", "connection", self.without_header)
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream_port)
        with contextlib.closing(connection):
            connection.request(request.command, request.path, body, headers)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()

    def reply(self, request, status, headers, data, only=None):
        request.send_response(status)
        for key, value in headers.items():
            if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                request.send_header(key, value)
        if status != 304:
            request.send_header("Content-Length", str(len(data)))
        request.send_header("Connection", "close")
        request.end_headers()
        if request.command != "HEAD" and status != 304:
            request.wfile.write(data[:only])
        request.close_connection = True

    def reset(self, request):
        """Ends the connection without a word."""
        linger = struct.pack("ii", 1, 0)
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.close_connection = True
        request.connection.close()
