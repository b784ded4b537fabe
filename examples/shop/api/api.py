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

TIMEOUT = 2.0  # seconds, for each step of a conversation with the database
IDLE_MAX = 8  # connections kept open
GRACE = 3.0  # seconds for requests under way when asked to stop
LINE_MAX = 8192  # bytes of a line of a request
HEADERS_MAX = 100


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


def answer(path):
    """Status and body for a request."""
    try:
        if path == "/healthz":
            return "200 OK", {"database": POOL.query("SELECT 'ok'")}
        if path == "/api/visit":
            return "200 OK", {"visits": visit(), "served_by": socket.gethostname()}
        return "404 Not Found", {"error": f"nothing at {path}"}
    except (OSError, TypeError, ValueError, struct.error) as error:
        TABLE.clear()  # the database may be a new one
        print(f"{path}: {error}", file=sys.stderr, flush=True)
        return "503 Service Unavailable", {"error": str(error), "served_by": socket.gethostname()}


class Server:
    """A thread per connection; knows how many there are.

    HTTP is spoken by hand: importing http.server takes four times as long as all else that a start does.
    """

    def __init__(self, port):
        self.listener = socket.create_server(("0.0.0.0", port), backlog=1024)
        self.stopping = False
        self.busy = 0
        self.changed = threading.Condition()

    def serve(self):
        """Until asked to stop; then what is under way is finished."""
        while not self.stopping:
            try:
                connection, (client, _) = self.listener.accept()
            except OSError as error:
                if not self.stopping:
                    print(f"accept: {error}", file=sys.stderr, flush=True)
                continue
            with self.changed:
                self.busy += 1
            threading.Thread(target=self.converse, args=(connection, client), daemon=True).start()
        with self.changed:
            self.changed.wait_for(lambda: self.busy == 0, GRACE)

    def stop(self, *_):
        if not self.stopping:
            self.stopping = True
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept

    def converse(self, connection, client):
        try:
            with connection, connection.makefile("rb") as stream:
                connection.settimeout(30)
                while self.request(connection, stream, client):
                    pass
        except (OSError, ValueError) as error:
            print(f"{client}: {error}", file=sys.stderr, flush=True)
        finally:
            with self.changed:
                self.busy -= 1
                self.changed.notify_all()

    def request(self, connection, stream, client):
        """Answers one request; whether another may follow."""
        line = stream.readline(LINE_MAX).decode("latin-1")
        if not line:
            return False
        method, path, version = line.split()
        headers = {}
        while (header := stream.readline(LINE_MAX).decode("latin-1").strip()) and len(headers) < HEADERS_MAX:
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip().lower()
        if header:
            raise ValueError("too many headers")
        status, body = answer(path) if method == "GET" else ("405 Method Not Allowed", {"error": "GET is all there is"})
        # A body would be read as the next request.
        bare = method == "GET" and not headers.keys() & {"content-length", "transfer-encoding"}
        more = bare and version == "HTTP/1.1" and headers.get("connection") != "close"
        data = json.dumps(body).encode() + b"\n"
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        head += "\r\n" if more else "Connection: close\r\n\r\n"
        connection.sendall(head.encode() + data)
        if path != "/healthz" or status != "200 OK":
            print(client, f'"{line.strip()}"', status, flush=True)
        return more


def main():
    server = Server(int(os.environ.get("PORT", "8000")))
    signal.signal(signal.SIGTERM, server.stop)
    signal.signal(signal.SIGINT, server.stop)
    print("listening on port", server.listener.getsockname()[1], flush=True)
    server.serve()
    os._exit(0)


main()
