"""Back end: counts visits in PostgreSQL and says who answered.

GET /api/visit  adds one and answers {"visits": N, "served_by": HOSTNAME}
GET /healthz    answers 200 when the database does

DATABASE=host:port names the database; nothing but Python's standard library is needed.
"""

import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn

TIMEOUT = 2.0  # seconds, for each step of a conversation with the database
IDLE_MAX = 8  # connections kept open
GRACE = 3.0  # seconds for requests under way when asked to stop


class Database:
    """One connection, PostgreSQL's wire protocol 3.0: simple queries, no password."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")
        start = b"user\0postgres\0database\0postgres\0application_name\0shop\0\0"
        self.socket.sendall(struct.pack("!ii", len(start) + 8, 196608) + start)
        self.until_ready()

    def query(self, sql):
        """The first column of the last row, or None."""
        text = sql.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(text) + 4) + text)
        return self.until_ready()

    def until_ready(self):
        value = error = None
        while True:
            head = self.stream.read(5)
            if len(head) < 5:
                raise ConnectionError(error or "the database closed the connection")
            kind, size = struct.unpack("!ci", head)
            body = self.stream.read(size - 4)
            if kind == b"R" and struct.unpack("!i", body[:4])[0] != 0:
                raise ConnectionError("the database asks for a password")
            if kind == b"D":
                (length,) = struct.unpack("!i", body[2:6])
                value = body[6 : 6 + length].decode() if length >= 0 else None
            if kind == b"E":
                fields = dict((field[:1], field[1:]) for field in body.split(b"\0") if field)
                error = fields.get(b"M", b"error").decode(errors="replace")
            if kind == b"Z":
                if error:
                    raise ConnectionError(error)
                return value

    def alive(self):
        """False when the other side closed it while nobody looked."""
        return not select.select([self.socket], [], [], 0)[0]

    def close(self):
        self.stream.close()
        self.socket.close()


class Pool:
    """Open connections that nobody uses at the moment."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.address = host, int(port)
        self.idle = []
        self.lock = threading.Lock()

    def query(self, sql):
        with self.lock:
            one = self.idle.pop() if self.idle else None
        if one and not one.alive():
            one.close()
            one = None
        one = one or Database(*self.address)
        try:
            value = one.query(sql)
        except BaseException:
            one.close()  # never used again: what it would answer next is unknown
            self.forget()
            raise
        with self.lock:
            if len(self.idle) < IDLE_MAX:
                self.idle.append(one)
                return value
        one.close()
        return value

    def forget(self):
        """Closes what is open: when one connection hangs, so do the others to a database that is gone."""
        with self.lock:
            idle, self.idle = self.idle, []
        for one in idle:
            one.close()


POOL = Pool(os.environ.get("DATABASE", "db:5432"))
TABLE = threading.Event()


def visit():
    """Counts one visit."""
    add = "UPDATE visits SET n = n + 1 RETURNING n"
    if not TABLE.is_set():
        # Several back ends may come here at once: the lock lets one make the table.
        POOL.query(
            "BEGIN; SELECT pg_advisory_xact_lock(7); CREATE TABLE IF NOT EXISTS visits (n bigint NOT NULL);"
            "INSERT INTO visits SELECT 0 WHERE NOT EXISTS (SELECT FROM visits); COMMIT"
        )
        TABLE.set()
    return int(POOL.query(add))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self):  # the name is http.server's
        if self.path == "/healthz":
            self.answer(lambda: {"database": POOL.query("SELECT 'ok'")})
        elif self.path == "/api/visit":
            self.answer(lambda: {"visits": visit(), "served_by": socket.gethostname()})
        else:
            self.send(404, {"error": f"nothing at {self.path}"})

    def answer(self, work):
        try:
            self.send(200, work())
        except (OSError, TypeError, ValueError, struct.error) as error:
            TABLE.clear()  # the database may be a new one
            print(f"{self.path}: {error}", file=sys.stderr, flush=True)
            self.send(503, {"error": str(error), "served_by": socket.gethostname()})

    def send(self, status, body):
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):  # the name is http.server's
        if self.path != "/healthz" or args[1:2] != ("200",):
            print(self.client_address[0], format % args, flush=True)


class Server(ThreadingMixIn, HTTPServer):
    """A thread per connection; knows how many requests are under way."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, address):
        self.busy = 0
        self.changed = threading.Condition()
        super().__init__(address, Handler)

    def server_bind(self):
        # Not HTTPServer's: it looks its own name up, which takes seconds where nobody answers.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address):
        with self.changed:
            self.busy += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.changed:
                self.busy -= 1
                self.changed.notify_all()

    def handle_error(self, request, client_address):
        print(f"{client_address[0]}: {sys.exc_info()[1]}", file=sys.stderr, flush=True)


def stop(*_):
    raise SystemExit(0)


def main():
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = Server(("0.0.0.0", int(os.environ.get("PORT", "8000"))))
    print("listening on port", server.server_port, flush=True)
    try:
        server.serve_forever()
    except SystemExit:
        server.server_close()
        with server.changed:
            server.changed.wait_for(lambda: server.busy == 0, GRACE)
    os._exit(0)


main()
