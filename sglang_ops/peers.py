"""Who gets a model from whom, so that the hub is asked for its bytes once, and compiled kernels. Pure.

The hosts that lack a model stand in a chain, in the order of the play: each gets it from the one before it, while that
one still gets it, so the last is done little later than the first however many there are. The first gets it from a
host that has it already, else from the hub. Whoever loses its source goes on with the next one, and in the end with
the hub.

Compiled kernels come straight from a host whose server runs with them; nobody needs to have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

SEEDS = 2  # hosts that have a model and are asked to share it: one is enough, the other is for when it fails
EARLIER = 3  # hosts before it in the chain that a host may turn to


@dataclass(frozen=True)
class Model:
    """A repository at a commit, and where it lies, or will, in the host's cache."""

    repo: str
    commit: str
    hub: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What it is, wherever it lies."""
        return self.repo, self.commit


@dataclass(frozen=True)
class Kernels:
    """A cache of compiled kernels at `path`: `key` is its name everywhere, `machine` the processor that they are for,
    `parts` the directories in it that are good on every such host.
    """

    key: str
    machine: str
    path: str
    parts: tuple[str, ...]

    def same(self, other: Kernels) -> bool:
        return (self.key, self.machine) == (other.key, other.machine)


@dataclass(frozen=True)
class Host:
    """A host of the play, and where others reach its server."""

    name: str
    address: str
    port: int
    missing: tuple[Model, ...] = ()
    holds: tuple[Model, ...] = ()
    kernels: tuple[Kernels, ...] = ()
    compiled: tuple[Kernels, ...] = ()

    def lacks(self, key: tuple[str, str]) -> bool:
        return any(model.key == key for model in self.missing)

    def has(self, key: tuple[str, str]) -> bool:
        return any(model.key == key for model in self.holds) and not self.lacks(key)


def seeds(fleet: Sequence[Host]) -> list[str]:
    """Hosts that get nothing themselves, and shall share what they have because others need it."""
    wanted = dict.fromkeys(model.key for host in fleet for model in host.missing)
    chosen = {holder.name: holder for key in wanted for holder in _holders(key, fleet)}
    chosen |= {giver.name: giver for host in fleet for _, givers in kernels_of(host, fleet) for giver in givers}
    return [name for name, holder in chosen.items() if not holder.missing and not kernels_of(holder, fleet)]


def receivers(fleet: Sequence[Host]) -> list[str]:
    """Hosts that can have compiled kernels."""
    return [host.name for host in fleet if kernels_of(host, fleet)]


def kernels_of(host: Host, fleet: Sequence[Host]) -> list[tuple[Kernels, list[Host]]]:
    """What the host lacks of compiled kernels and others have, with them; a few, and not always the same one first."""
    found = []
    for wanted in host.kernels:
        having = [each for each in fleet if each is not host and any(wanted.same(item) for item in each.compiled)]
        first = sum(map(ord, host.name)) % SEEDS if len(having) >= SEEDS else 0
        givers = [*having[:SEEDS][first:], *having[:first]]
        if givers:
            found.append((wanted, givers))
    return found


def sources(name: str, key: tuple[str, str], fleet: Sequence[Host]) -> list[Host]:
    """From whom the host shall get a model, in this order; nobody is left but the hub at the end."""
    chain = [host for host in fleet if host.lacks(key)]
    turn = _turn(name, chain)
    earlier = chain[:turn][::-1]
    origin = chain[:1] if turn else []
    found = [*earlier[:EARLIER], *_holders(key, fleet), *origin]
    return list({host.name: host for host in found}.values())


def part_of(name: str, fleet: Sequence[Host]) -> dict[str, Any]:
    """What the module on a host is told, less the secret: from whom to follow, who may follow it, and what it has.

    Empty where the host is alone with what it lacks and has, or does not share.
    """
    host = next((each for each in fleet if each.name == name), None)
    if host is None:
        return {}
    follow = []
    for model in host.missing:
        chain = [each for each in fleet if each.lacks(model.key)]
        named = _named(sources(name, model.key, fleet))
        if named:
            turn = _turn(name, chain)
            follow.append({"repo": model.repo, "commit": model.commit, "turn": turn, "sources": named})
    asking = [(model.key, other.name) for other in fleet if other is not host for model in other.missing]
    asking = [(key, other) for key, other in asking if host in sources(other, key, fleet)]
    asked = {key for key, _ in asking}
    holds = [
        {"repo": model.repo, "commit": model.commit, "hub": model.hub}
        for model in host.holds
        if host.has(model.key) and model.key in asked
    ]
    kernels = [_told(item) | {"sources": _named(givers)} for item, givers in kernels_of(host, fleet)]
    given = [(item, other.name) for other in fleet for item, givers in kernels_of(other, fleet) if host in givers]
    compiled = [item for item in host.compiled if any(item.same(wanted) for wanted, _ in given)]
    hosts = list(dict.fromkeys(other for _, other in [*asking, *given]))
    if not (follow or kernels or hosts):
        return {}
    models = {"follow": follow, "holds": holds}
    return {"name": name, "port": host.port, "hosts": hosts, **models, "kernels": kernels,
            "compiled": [_told(item) for item in compiled]}  # fmt: skip


def identity() -> str:
    """A new key with its certificate, in PEM: who has it belongs to the run.

    The certificate never expires, because the clocks of hosts may be wrong; the key is forgotten with the run.
    """
    from cryptography import x509  # noqa: PLC0415 - only a run that shares needs it
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sglang-ops run")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days=365 * 999))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (private + certificate.public_bytes(serialization.Encoding.PEM)).decode()


def _named(hosts: Sequence[Host]) -> list[dict[str, Any]]:
    return [{"name": each.name, "address": each.address, "port": each.port} for each in hosts]


def _told(kernels: Kernels) -> dict[str, Any]:
    return {"key": kernels.key, "path": kernels.path, "parts": list(kernels.parts)}


def _holders(key: tuple[str, str], fleet: Sequence[Host]) -> list[Host]:
    return [host for host in fleet if host.has(key)][:SEEDS]


def _turn(name: str, chain: Sequence[Host]) -> int:
    """How many come before the host."""
    return next((number for number, host in enumerate(chain) if host.name == name), len(chain))
