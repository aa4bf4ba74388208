"""A vendor's package repository for tests: packages built on the spot, really signed, served to the lab's hosts."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import subprocess
import threading
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

NOBODY = "Test Vendor <vendor@example.invalid>"
PAST = "20200101T000000"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@dataclass
class Vendor:
    """A flat apt repository (suite ``/``) in `folder`, at `url` while it is open. Its key is `url`/key.asc."""

    folder: Path
    address: str

    def __post_init__(self) -> None:
        self.root = self.folder / "www"
        self.root.mkdir(parents=True)
        self._home = self.folder / "gnupg"
        self._home.mkdir(mode=0o700)
        self._time: tuple[str, ...] = ()
        self.new_key()
        self._server: http.server.ThreadingHTTPServer | None = None
        self.open()
        self.url = f"http://{self.address}:{self.port}"
        self.key = f"{self.url}/key.asc"

    def open(self) -> None:
        """Serve it, on the same port as before."""
        handler = functools.partial(_Quiet, directory=str(self.root))
        self._server = http.server.ThreadingHTTPServer((self.address, getattr(self, "port", 0)), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Be out of reach."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self._run("gpgconf", "--kill", "all")  # gpg's agent would stay

    def new_key(self, *, expired: bool = False) -> None:
        """Sign with another key from now on, one that expired long ago if need be."""
        self._time = ("--faked-system-time", PAST) if expired else ()
        user = f"{len(list(self._home.glob('*')))} {NOBODY}"
        self._gpg("--quick-gen-key", user, "rsa2048", "sign", "1d" if expired else "never")
        self._user = user
        (self.root / "key.asc").write_text(self._gpg("--armor", "--export", f"={user}"))

    def publish(self, name: str, version: str, depends: str = "", files: dict[str, str] | None = None,
                scripts: dict[str, str] | None = None, extra: dict[str, str] | None = None) -> None:  # fmt: skip
        """Add a package of the given files (absolute path to text; a script where it begins with #!)."""
        tree = self.folder / "tree" / f"{name}_{version.replace(':', '%')}"
        control = {"Package": name, "Version": version, "Architecture": "all", "Maintainer": NOBODY,
                   "Depends": depends, "Description": f"stands in for {name}"} | (extra or {})  # fmt: skip
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        text = "".join(f"{key}: {value}\n" for key, value in control.items() if value)
        (tree / "DEBIAN" / "control").write_text(text)
        every = (files or {}) | {f"/DEBIAN/{script}": body for script, body in (scripts or {}).items()}
        for path, body in every.items():
            file = tree / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body)
            file.chmod(0o755 if body.startswith("#!") else 0o644)
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", "-Zgzip", "-z1", str(tree), str(self.root)],
                       check=True, capture_output=True)  # fmt: skip
        self.sign()

    def sign(self) -> None:
        """Write the lists anew and sign them."""
        entries = []
        for package in sorted(self.root.glob("*.deb")):
            data = package.read_bytes()
            control = subprocess.run(["dpkg-deb", "--field", str(package)], check=True, capture_output=True, text=True)
            entries.append(f"{control.stdout}Filename: ./{package.name}\nSize: {len(data)}\n"
                           f"SHA256: {hashlib.sha256(data).hexdigest()}\n")  # fmt: skip
        packages = "\n".join(entries).encode()
        (self.root / "Packages").write_bytes(packages)
        release = (f"Origin: Test\nDate: {formatdate(usegmt=True)}\nSHA256:\n"
                   f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n")  # fmt: skip
        (self.folder / "Release").write_text(release)
        signed = self._gpg("--clearsign", "--local-user", f"={self._user}", "--output", "-",
                           str(self.folder / "Release"))  # fmt: skip
        (self.root / "InRelease").write_text(signed)

    def _gpg(self, *arguments: str) -> str:
        return self._run("gpg", "--batch", "--yes", "--passphrase", "", *self._time, *arguments)

    def _run(self, *command: str) -> str:
        environment = os.environ | {"GNUPGHOME": str(self._home)}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout
