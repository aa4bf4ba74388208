"""Debian root file systems, made with mmdebstrap: the lab's hosts and its container images start here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sglang_ops.errors import OpsError

MIRROR_VARIABLE = "SGLANG_OPS_LAB_MIRROR"

SUITES: Mapping[str, str] = {"debian12": "bookworm", "debian13": "trixie"}

_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_LOCAL_CAS = Path("/usr/local/share/ca-certificates")

# What of the machine's apt settings a tree needs too: the way to the mirror, not how apt behaves.
_NETWORK_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-")

# A tree is rebuilt from nothing when it is lost, so waiting for the disk buys no safety.
# Nobody reads manual pages in a lab host or in an image.
_DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
)

Log = Callable[[str], None]


def bootstrap(suite: str, packages: Sequence[str], target_dir: Path, *, log: Log, keep_lists: bool = False) -> None:
    """Make a minimal Debian tree of `suite` ("bookworm", "trixie") with `packages` in `target_dir`.

    `target_dir` must be absent or empty; after a failure it is removed. `log` gets a sentence per step.
    With `keep_lists` the tree keeps apt's package lists, so that a later install needs no update.
    Packages come from mmdebstrap's own default mirrors, or from the mirror named in SGLANG_OPS_LAB_MIRROR.
    The machine's apt proxy and certificate authorities are used, and travel into the tree, so that apt
    and TLS work there as they do on the machine. Raises OpsError with mmdebstrap's last words.
    """
    log(f"Debian {suite}: installing {len(packages)} packages and what they need")
    mirror = os.environ.get(MIRROR_VARIABLE)
    command = bootstrap_command(suite, packages, target_dir, mirror=mirror, apt=apt_settings(), keep_lists=keep_lists)
    scratch = target_dir.with_name(f".partial-{target_dir.name}.tmp")  # killed, mmdebstrap leaves its keys there
    scratch.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    if done.returncode != 0:
        shutil.rmtree(target_dir, ignore_errors=True)
        raise OpsError(
            f"mmdebstrap could not build a Debian {suite} tree: {_last_words(done.stdout)}",
            fix=f"Make a Debian mirror reachable, or name one that is in {MIRROR_VARIABLE}.",
        )
    trust_machine_authorities(target_dir)


def bootstrap_command(
    suite: str,
    packages: Sequence[str],
    target_dir: Path,
    *,
    mirror: str | None = None,
    apt: Iterable[str] = (),
    keep_lists: bool = False,
) -> list[str]:
    """The mmdebstrap command line of a tree; without `mirror`, mmdebstrap takes its default ones."""
    command = ["mmdebstrap", "--variant=minbase", "--format=directory", "--quiet"]
    if packages:
        command.append(f"--include={','.join(packages)}")
    command += [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
    command += [f"--aptopt={setting}" for setting in ('Acquire::Languages "none"', *apt)]
    if keep_lists:
        command.append("--skip=cleanup/apt/lists")
    command += [suite, str(target_dir)]
    if mirror:
        command.append(mirror)
    return command


def apt_settings() -> list[str]:
    """The machine's apt settings that decide how a mirror is reached, as lines for apt.conf.

    Where apt has no proxy of its own, the proxy variables of the environment count, as they do for apt.
    """
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    settings = [line.rstrip(";") for line in dump.splitlines() if line.startswith(_NETWORK_SETTINGS)]
    for scheme in ("http", "https"):
        proxy = os.environ.get(f"{scheme}_proxy")
        key = f"Acquire::{scheme}::Proxy "
        if proxy and not any(line.startswith(key) for line in settings):
            settings.append(f'{key}"{proxy}"')
    return settings


def trust_machine_authorities(tree: Path) -> None:
    """Let the tree trust every certificate authority that the machine trusts.

    Companies re-sign TLS with an authority of their own; without it, downloads in the tree fail.
    """
    if _LOCAL_CAS.is_dir():
        shutil.copytree(_LOCAL_CAS, tree / _LOCAL_CAS.relative_to("/"), dirs_exist_ok=True)
    if _CA_BUNDLE.is_file():
        bundle = tree / _CA_BUNDLE.relative_to("/")
        bundle.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_CA_BUNDLE, bundle)


def authorities_digest() -> str:
    """A hash of the authorities that `trust_machine_authorities` would copy, for keys of cached trees."""
    files = [_CA_BUNDLE, *sorted(_LOCAL_CAS.rglob("*"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def _last_words(output: str, lines: int = 5) -> str:
    return " | ".join(line.strip() for line in output.splitlines()[-lines:] if line.strip()) or "no output"
