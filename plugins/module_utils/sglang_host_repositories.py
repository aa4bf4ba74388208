"""Package repositories of vendors as this host knows them: one file for the source, one for its key.

Python 3.8, standard library.
"""

from __future__ import annotations

import base64
import urllib.request
from dataclasses import dataclass

from ansible.module_utils.sglang_host_package_manager import PackageError
from ansible.module_utils.sglang_host_state import read_text, write_atomic

_KEY_BYTES = 1 << 20
_SECONDS = 30
_BEGIN, _END = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
_KEY_TAG = 6  # a public key, RFC 9580 section 5; every exported key begins with one


class RepositoryError(PackageError):
    """A repository cannot be set up; one sentence says why and what to do."""


@dataclass(frozen=True)
class Repository:
    """A source of packages. `key` is the URL of the key that signs it, armoured or binary; "" for further parts of a
    repository that the host knows, whose `keyring` (or apt's own) is used.
    """

    name: str  # stem of its file
    url: str
    key: str
    suites: tuple = ("/",)  # these three for apt only
    components: tuple = ()
    architectures: tuple = ()
    signed: str = "packages"  # what the key signs, for dnf only: "packages" or "metadata"
    keyring: str = ""  # a path, for apt only


def source_path(repository, family):
    if family == "debian":
        return "/etc/apt/sources.list.d/%s.sources" % repository.name
    return "/etc/yum.repos.d/%s.repo" % repository.name


def key_path(repository, family):
    if family == "debian":
        return "/etc/apt/keyrings/%s.asc" % repository.name
    return "/etc/pki/rpm-gpg/RPM-GPG-KEY-%s" % repository.name


def files(repository, family):
    """The text of every file but the key, by path. Pure. A key from another URL changes the text as well."""
    note = "# The key is from %s\n" % repository.key if repository.key else ""
    path = key_path(repository, family) if repository.key else repository.keyring
    if family == "debian":
        fields = {
            "Types": "deb", "URIs": repository.url, "Suites": " ".join(repository.suites),
            "Components": " ".join(repository.components), "Architectures": " ".join(repository.architectures),
            "Signed-By": path,
        }
        text = note + "".join("%s: %s\n" % field for field in fields.items() if field[1])
    else:
        metadata = repository.signed == "metadata"
        fields = {
            "name": repository.name, "baseurl": repository.url, "enabled": "1", "gpgcheck": "%d" % (not metadata),
            "repo_gpgcheck": "%d" % metadata, "gpgkey": "file://" + path,
        }
        text = note + "[%s]\n" % repository.name + "".join("%s=%s\n" % field for field in fields.items())
    return {source_path(repository, family): text}


def missing(repository, family):
    """What of it this host lacks, by path; the key, which is not fetched for this, as a word about it. Reads only."""
    lacking = {path: text for path, text in files(repository, family).items() if read_text(path) != text}
    if repository.key and (lacking or read_text(key_path(repository, family)) is None):
        lacking[key_path(repository, family)] = "(the key at %s)\n" % repository.key
    return lacking


def write(repository, family, progress=None):
    """Fetch the key and write every file; returns their paths. Raises RepositoryError.

    The source comes last: without its key it would break every update.
    """
    texts = {}
    if repository.key:
        if progress:
            progress.report("fetching the key of repository %s" % repository.name)
        texts[key_path(repository, family)] = armoured(_fetched(repository), repository)
    texts.update(files(repository, family))
    for path, text in texts.items():
        if read_text(path) != text:
            write_atomic(path, text)
    return list(texts)


def _fetched(repository):
    url = repository.key if "://" in repository.key else "file://" + repository.key
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            return answer.read(_KEY_BYTES)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise RepositoryError("The key of package repository %s cannot be fetched from %s: %s. Check network, proxy "
                              "and URL, or name a mirror." % (repository.name, repository.key, why)) from None


def armoured(data, repository):
    """A public key as text, which apt and rpm both take. Raises RepositoryError for anything else. Pure."""
    text = data.decode("latin-1")
    begin, end = text.find(_BEGIN), text.rfind(_END)
    if 0 <= begin < end:
        return text[begin:end].replace("\r\n", "\n") + _END + "\n"
    if not data or _tag(data[0]) != _KEY_TAG:
        raise RepositoryError("%s is no OpenPGP key: it begins with %r. Check the URL of the key of package repository "
                              "%s." % (repository.key, text[:20], repository.name))
    body = base64.b64encode(data).decode()
    lines = [body[start:start + 64] for start in range(0, len(body), 64)]
    check = base64.b64encode(_crc24(data).to_bytes(3, "big")).decode()
    return "\n".join([_BEGIN, "", *lines, "=" + check, _END, ""])


def _tag(octet):
    """The type of an OpenPGP packet by its first octet, -1 for none."""
    if not octet & 0x80:
        return -1
    return octet & 0x3F if octet & 0x40 else (octet & 0x3F) >> 2


def _crc24(data):
    """The checksum of armour (RFC 4880 section 6.1), without which rpm refuses a key."""
    value = 0xB704CE
    for octet in data:
        value ^= octet << 16
        for _ in range(8):
            value <<= 1
            if value & 0x1000000:
                value ^= 0x1864CFB
    return value
