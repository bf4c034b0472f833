"""A hub on 127.0.0.1 that can lie, for torture.py. One Hub serves one repository, org/model."""

import hashlib
import json
import re
import socket
import struct
import threading
import time

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!DOCTYPE html><html><head><title>Log in</title></head><body>Accept the terms of this network</body></html>"


class Hub:
    """The server. `lies` maps the name of a file, or "listing", to the lies told to its next requests."""

    def __init__(self, folder, pace=0.0):
        files = [path for path in folder.iterdir() if path.is_file()]
        self.files = {path.name: path.read_bytes() for path in files}
        self.hashes = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        self.pace = pace  # seconds between pieces of a body
        self.is_vouched = True  # etags are hashes, as on the hub; a mirror's may be anything
        self.lies, self.log, self.other = {}, [], None
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.accept, daemon=True).start()

    def close(self):
        self.socket.close()

    def accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        connection.settimeout(30)
        with connection:
            try:
                while request := read_request(connection):
                    self.log.append(request)
                    if not self.answer(connection, *request):
                        return
            except OSError:
                pass  # Clients that are killed are what this is for.

    def lie_about(self, name, method):
        """The next lie about a file. Its HEAD is answered with the same lie as its body, which uses it up."""
        lies = self.lies.get(name, [])
        if not lies:
            return None
        if len(lies) == 1 and lies[0].get("for_ever"):
            return lies[0]
        return lies[0] if method == "HEAD" else lies.pop(0)

    def answer(self, connection, method, path, headers):
        if path.startswith("/api/models/"):
            return self.listing(connection, path)
        match = re.fullmatch(r"/(?:org/model/resolve/[^/]+|elsewhere)/(.+)", path)
        name = match and match[1]
        if name not in self.files:
            return send(connection, 404, {"X-Error-Code": "EntryNotFound"})
        lie = self.lie_about(name, method) or {}
        if path.startswith("/elsewhere/"):
            lie.pop("redirect", None)
        return self.file(connection, method, name, headers, lie)

    def listing(self, connection, path):
        lie = self.lie_about("listing", "GET") or {}
        if not re.match(r"/api/models/org/model(/revision/|\?|$)", path):
            return send(connection, 404, {"X-Error-Code": "RepoNotFound"})
        names = [*self.files, *lie.get("names", [])]
        answer = {"id": "org/model", "sha": lie.get("sha", COMMIT), "siblings": [{"rfilename": n} for n in names]}
        body = lie.get("body", json.dumps(answer).encode())
        return self.respond(connection, "GET", 200, {"Content-Type": "application/json"}, body, lie)

    def file(self, connection, method, name, headers, lie):
        data = lie.get("body", self.files[name])
        etag = lie.get("etag", self.hashes[name] if self.is_vouched else f"v-{len(data)}")
        answer = {"ETag": f'"{etag}"'} if etag else {}
        if self.is_vouched:
            answer |= {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        if "size" in lie:
            answer["X-Linked-Size"] = str(lie["size"])
        if "redirect" in lie:
            return send(connection, 302, answer | {"Location": lie["redirect"]})

        status, asked = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if asked and not lie.get("no_ranges"):
            start, stop = int(asked[1]), int(asked[2] or len(data) - 1) + 1
            if start >= len(data):
                return send(connection, 416, answer)
            first = start + lie.get("shift", 0)  # sends other bytes than were asked for
            told = first if lie.get("shift_is_told") else start
            total = len(data) + lie.get("total", 0)
            answer["Content-Range"] = f"bytes {told}-{min(stop, len(data)) - 1}/{total}"
            status, data = 206, data[max(first, 0) : stop]
        return self.respond(connection, method, status, answer, data, lie)

    def respond(self, connection, method, status, headers, body, lie):
        """Sends headers and a body, with what a lie says of them."""
        status = lie.get("status", status)
        if status >= 400:
            return send(connection, status, headers | lie.get("headers", {}))
        if lie.get("flip") is not None and body:
            body = bytearray(body)
            body[lie["flip"] % len(body)] ^= 1
        cut = lie.get("cut")  # a share of the body
        sent = body if cut is None else body[: int(cut * len(body))]
        length = len(sent) if lie.get("cut_is_told") else len(body) + lie.get("length", 0)
        headers = {"Content-Length": str(length)} | headers | lie.get("headers", {})
        if lie.get("no_length"):
            del headers["Content-Length"]
        if lie.get("garbage"):
            connection.sendall(b"\x00\xff garbage\r\n\r\n")
            return False
        connection.sendall(head(status, headers))
        if method != "HEAD":
            self.send_body(connection, bytes(sent), lie)
        if lie.get("reset"):  # an RST and not a FIN
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return cut is None and not lie.get("no_length") and not lie.get("reset")

    def send_body(self, connection, body, lie):
        for _ in range(lie.get("trickle", 0)):
            connection.sendall(body[:1])
            body = body[1:]
            time.sleep(0.02)
        piece = 1 << 16
        for start in range(0, len(body), piece):
            connection.sendall(body[start : start + piece])
            time.sleep(self.pace)
        time.sleep(lie.get("stall", 0))


def head(status, headers):
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def send(connection, status, headers):
    connection.sendall(head(status, headers | {"Content-Length": "0"}))
    return True


def read_request(connection):
    """Method, path and headers; None at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1 << 16)
        if not piece or len(data) > 1 << 20:
            return None
        data += piece
    lines = data.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return method, path, headers


def lies_of_a_file(rng, name, size, other):
    """Lies about a file whose hash the hub vouches for: none may end in other bytes than the right ones."""
    at = rng.random()
    wrong = hashlib.sha256(rng.randbytes(8)).hexdigest()
    yield "short body", [{"cut": at}]
    yield "short body, six times", [{"cut": rng.random()} for _ in range(6)]
    yield "short body and length", [{"cut": at, "cut_is_told": True}] * 2
    yield "short body without length", [{"cut": at, "no_length": True}]
    yield "reset", [{"cut": at, "reset": True}]
    yield "wrong etag", [{"etag": wrong, "for_ever": True}]
    yield "wrong etag once", [{"etag": wrong}]
    yield "etag that leads elsewhere", [{"etag": "../../../../evil", "for_ever": True}]
    yield "web page with 200", [{"body": PAGE, "etag": "page", "for_ever": True}]
    yield "web page with the file's hash", [{"body": PAGE}]
    yield "announced shorter", [{"size": int(size * at), "for_ever": True}]
    yield "announced longer", [{"size": size + 1 + int(size * at)}]
    yield "longer content-length", [{"length": 1 + int(size * at)}]
    yield "flipped bit", [{"flip": int(size * at)}]
    yield "flipped bits for ever", [{"flip": int(size * at), "for_ever": True}]
    yield "trickle", [{"trickle": 50, "cut": 0.5}]
    yield "stall", [{"cut": at, "stall": 2.5}]
    yield "resumes elsewhere", [{"cut": 0.5}, {"shift": rng.choice([-100, -1, 1, 100])}]
    yield "resumes elsewhere and says so", [{"cut": 0.5}, {"shift": -7, "shift_is_told": True}]
    yield "resumes another length", [{"cut": 0.5}, {"total": rng.choice([-5, 5])}]
    yield "does not resume", [{"cut": 0.5}, {"no_ranges": True}]
    yield "garbage for headers", [{"garbage": True}]
    yield "server error", [{"status": rng.choice([500, 502, 503])}]
    yield "redirect to itself", [{"redirect": f"/org/model/resolve/main/{name}", "for_ever": True}]
    yield "redirect to another host", [{"redirect": f"{other}/elsewhere/{name}", "for_ever": True}]
    yield "redirect to a file", [{"redirect": "file:///etc/passwd", "for_ever": True}]
    yield "said to be compressed", [{"headers": {"Content-Encoding": "gzip"}}]


def lies_of_a_mirror(rng):
    """Lies about a file that nobody vouches for: what is cut, or is no model, must be found all the same."""
    yield "mirror: cut, no length", [{"cut": rng.random() * 0.99, "no_length": True, "for_ever": True}]
    yield "mirror: cut, no etag", [{"cut": rng.random() * 0.99, "cut_is_told": True, "etag": "", "for_ever": True}]
    yield "mirror: web page", [{"body": PAGE, "for_ever": True}]
    yield "mirror: web page, no etag", [{"body": PAGE, "etag": "", "for_ever": True}]
    yield "mirror: empty", [{"body": b"", "for_ever": True}]


def lies_of_the_listing(rng):
    whole = b'{"id": "org/model", "sha": "%s", "siblings": [' % COMMIT.encode()
    yield "listing: web page", [{"body": PAGE, "for_ever": True}]
    yield "listing: cut", [{"cut": rng.random()}]
    yield "listing: not JSON", [{"body": whole, "for_ever": True}]
    yield "listing: nested", [{"body": b"[" * 100_000, "for_ever": True}]
    yield "listing: 80 MB", [{"body": whole + b'{"rfilename": "x"},' * 4_000_000 + b"]}", "for_ever": True}]
    yield "listing: no commit", [{"sha": "../../x", "for_ever": True}]
    yield "listing: names that lead out", [{"names": ["../../evil", "/evil", "a/../../evil", "evil\\..\\x"]}]
    yield "listing: server error", [{"status": 503, "headers": {"Retry-After": "1"}}]
    yield "listing: reset", [{"cut": 0.5, "reset": True}]
