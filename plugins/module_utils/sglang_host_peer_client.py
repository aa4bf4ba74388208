"""Gets the files of a model from another host of the run, which may itself still be getting them.

The state of the other host says what can be had there; a few connections fetch that, a slice of a file at a time. It
does not matter who sent which byte (see `sglang_host_peer_files`), so whoever loses a host goes on with the next one.
Python 3.8, standard library.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
import ssl
import threading
import time
from urllib.parse import quote

from ansible.module_utils.sglang_host_peer_files import READ_AT_ONCE, Part

CONNECTIONS = 4  # files at a time, from one host
TRIES = 3  # of a connection, while the host answers on another one
SLICE = 64 << 20  # bytes asked for at once: after each the next file may be a better choice
POLL_SECONDS = 0.1
LEAVE_SECONDS = 2  # for saying that we are done
CONNECT_SECONDS = 5  # then a firewall swallows what we send
ANSWER_SECONDS = 15  # then the host is gone
GRACE_SECONDS = 20  # from the beginning, for a host that refuses: it may not have come to this task yet


class Lost(Exception):
    """Nothing more is to be had from this host, and why."""


class Broken(Exception):
    """A connection that ended; another one may do better. `args[0]`: why."""


class Peer:
    """Another host, by name and address. Connections belong to the thread that makes them."""

    def __init__(self, name, address, port, context) -> None:
        self.name, self._address, self._port, self._context = name, address, port, context

    def connect(self, timeout=ANSWER_SECONDS):
        return http.client.HTTPSConnection(self._address, self._port, timeout=timeout, context=self._context)

    def first(self, connection, ask, waiting, until=None):
        """What `ask` answers on a new connection; who refuses may not have come to this task yet. Raises Lost.

        `waiting` is called meanwhile, `until` (monotonic) at most; by default GRACE_SECONDS from now.
        """
        until = time.monotonic() + GRACE_SECONDS if until is None else until
        while True:
            try:
                connection.connect()
                connection.sock.settimeout(ANSWER_SECONDS)
                return ask()
            except (ConnectionRefusedError, ssl.SSLError) as error:  # the latter: the server of an earlier run
                connection.close()
                if time.monotonic() > until:
                    raise Lost(why(error)) from error
                waiting()
                time.sleep(POLL_SECONDS * 5)
            except OSError as error:
                raise Lost(why(error)) from error

    def state(self, connection):
        """(whether it still downloads, {BLOB: [bytes to be had, whether that is all]}). Raises OSError."""
        with _http_errors():
            connection.request("GET", "/state")
            answer = connection.getresponse()
            told = json.loads(answer.read())
        return told["fetching"], told["files"]

    def files(self, connection, key):
        """[{"name", "size", "blob"}] of a model, [] where it has none of that name. Raises OSError."""
        with _http_errors():
            connection.request("GET", "/models/" + quote(key))
            answer = connection.getresponse()
            return json.loads(answer.read())

    def done(self, host) -> None:
        """Tell it that `host` needs it no more; it would find out by itself."""
        connection = self.connect(LEAVE_SECONDS)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/done/" + quote(host))
            connection.getresponse().read()

    def read(self, connection, blob, begin, end):
        """Yield bytes of a blob from `begin` up to `end` at most. Raises OSError where they end too early."""
        with _http_errors():
            connection.request("GET", "/blobs/" + blob, headers={"Range": "bytes=%d-%d" % (begin, end - 1)})
            answer = connection.getresponse()
            if answer.status != 206:
                answer.read()
                raise OSError(errno.EIO, "it does not give what it said it had")
            left, buffer = answer.length or 0, memoryview(bytearray(READ_AT_ONCE))
            while left:
                count = answer.readinto(buffer)
                if not count:
                    raise OSError(errno.EIO, "it ended in the middle of a file")
                left -= count
                yield buffer[:count]


@contextlib.contextmanager
def _http_errors():
    try:
        yield
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(errno.EIO, "it does not answer properly") from error


class Follower:
    """Gets the files {BLOB: size} into `directory`, from one host after the other, until they are whole.

    `patience`: seconds without a byte, here and there, after which a host that still answers is given up. `report` is
    told how many bytes there are, and from whom.
    """

    def __init__(self, directory, files, patience, report) -> None:
        self.parts = [Part(directory, blob, size) for blob, size in files.items()]
        self.warnings = []  # type: list[str]
        self._patience, self._report = patience, report
        self._began = time.monotonic()
        self._there = {}  # type: dict[str, list]
        self._changed = threading.Condition()
        self._failure = None  # type: Exception | None
        self._over = False
        self._connections = []  # type: list

    @property
    def whole(self) -> bool:
        return all(part.whole for part in self.parts)

    @property
    def have(self) -> int:
        return sum(part.have for part in self.parts)

    def follow(self, peer) -> None:
        """Get what this host has and will have. Returns when all is whole. Raises Lost, Busy, OSError (disk)."""
        self._there, self._failure, self._over = {}, None, False
        connection = peer.connect(CONNECT_SECONDS)
        self._connections = [connection]
        fetching, files = peer.first(connection, lambda: peer.state(connection),
                                     lambda: self._report(self.have, peer.name), self._began + GRACE_SECONDS)
        workers = [threading.Thread(target=self._work, args=(peer,), daemon=True) for _ in range(CONNECTIONS)]
        try:
            for worker in workers:
                worker.start()
            self._watch(peer, connection, fetching, files)
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            for other in self._connections:
                _cut(other)
            for worker in workers:
                worker.join()
            connection.close()
            for part in self.parts:
                part.close()

    def _watch(self, peer, connection, fetching, files) -> None:
        """Tell the workers what is there, until all is whole or no more will come."""
        seen, since = None, time.monotonic()
        while True:
            with self._changed:
                self._there = files
                self._changed.notify_all()
            if self._failure:
                raise self._failure
            if self.whole:
                return
            now = (self.have, sum(count for count, _ in files.values()))  # it may be at another model first
            if now != seen:
                seen, since = now, time.monotonic()
            if not fetching and not any(part.taken or self._wants(part) for part in self.parts if not part.whole):
                raise Lost("it has ended its own download before the end")
            if time.monotonic() - since > self._patience:
                raise Lost("no data for %d s" % self._patience)
            self._report(self.have, peer.name)
            time.sleep(POLL_SECONDS)
            try:
                fetching, files = peer.state(connection)
            except OSError as error:
                raise Lost(why(error)) from error

    def _wants(self, part) -> bool:
        """Whether the host has something for us. Zero bytes are all of an empty file."""
        count, whole = self._there.get(part.blob, (0, False))
        if part.whole or (part.only_whole and not whole):
            return False
        return count > part.have or (whole and count == part.have)

    def _take(self):
        with self._changed:
            while not self._over:
                for part in self.parts:
                    if not part.taken and self._wants(part):
                        part.taken = True
                        return part, self._there[part.blob]
                self._changed.wait()
        return None, (0, False)

    def _work(self, peer) -> None:
        connection = peer.connect()
        self._connections.append(connection)
        part, there = self._take()
        tries = TRIES
        while part:
            failure = None  # type: Exception | None
            try:
                self._fetch(peer, connection, part, there)
                tries = TRIES
            except Broken as error:  # it was unused for too long, the file was begun anew there, or the host is gone
                connection.close()
                tries -= 1
                failure = None if tries else Lost(error.args[0])
                time.sleep(POLL_SECONDS)
            except Exception as error:  # noqa: BLE001 (raised again by the thread that watches)
                failure = error
            with self._changed:
                part.taken = False
                self._failure = self._failure or failure
                self._over = self._over or bool(failure)
            part, there = self._take()
        connection.close()

    def _fetch(self, peer, connection, part, there) -> None:
        """One slice of one file; the last one is followed by the check."""
        part.open(lambda: self._over)
        end = min(there[0], part.have + SLICE)
        if part.have < end:
            part.givers.add(peer.name)
            with contextlib.closing(peer.read(connection, part.blob, part.have, end)) as stream:
                while not self._over:
                    try:
                        data = next(stream, None)
                    except OSError as error:
                        raise Broken(why(error)) from error
                    if data is None:
                        break
                    part.write(data)
        if part.have >= part.size and not part.finish():
            givers, part.givers = part.givers, set()
            named = ", ".join(sorted(givers)) or "an earlier run"
            self.warnings.append("file %s came wrong from %s" % (part.blob[:12], named))
            if there[1] and givers == {peer.name}:
                raise Lost("what it sent has the wrong checksum")


def _cut(connection) -> None:
    """End whatever a thread waits for. SSLSocket.shutdown would let it go on reading, without the decryption."""
    sock = connection.sock
    if sock:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def why(error) -> str:
    """An OSError of a connection in a few words."""
    if isinstance(error, ConnectionRefusedError):
        return "it refuses connections"
    if isinstance(error, (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)):
        return "it has ended"
    text = str(getattr(error, "reason", None) or error.strerror or error)
    return "it does not answer" if "timed out" in text else text
