"""A client's end of the control plane's TLS: it shows the certificate of its role, and asks for the coordinator's.

The certificates of a job lie beside its folder, so that they outlive the runs in it: `runs/demo` has `runs/.demo.tls`.
They are read for every connection, so one that was renewed is used from the next connection on.
"""

from __future__ import annotations

from pathlib import Path

import grpc

TRUSTED = "trusted.pem"
"""Certificates of the authorities whose word is taken."""
OPERATOR = "operator.pem"
COORDINATOR = "coordinator.pem"

SCHEME = "quarantion://job/"
"""That the names of peers in certificates begin with."""

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


def tls_folder(job_folder: Path) -> Path:
    """The folder of a job's certificates."""
    return job_folder.with_name(f".{job_folder.name}.tls")


def agent_file(host: str) -> str:
    """The file with the key and the certificate of the agent of a host."""
    return f"agent-{host}.pem"


def agent_uri(job: str, host: str) -> str:
    """The name of the agent of a host in its certificate: `quarantion://job/demo/agent/host-1`."""
    return f"{SCHEME}{job}/agent/{host}"


def leader_name(job: str, host: str) -> str:
    """The server name in the certificate of the agent of a host, for those that it leads. No DNS knows it."""
    return f"{host}.agents.{job}"


class Damaged(Exception):
    """A file does not hold what it should."""


def split(pem: bytes) -> tuple[bytes, bytes]:
    """The key and the certificate of a file that has both, in this order.

    Raises:
        Damaged: it has no key or no certificate.
    """
    key, begin, rest = pem.partition(_CERTIFICATE)
    if b"PRIVATE KEY-----" not in key or not begin:
        raise Damaged("the file does not hold a private key and a certificate after it")
    return key, begin + rest


def channel_credentials(folder: Path, own: str) -> grpc.ChannelCredentials:
    """Of the client whose key and certificate are in the file `own` of `folder`.

    Raises:
        OSError: a file cannot be read.
        Damaged: one has no key or no certificate.
    """
    key, certificate = split((folder / own).read_bytes())
    return grpc.ssl_channel_credentials((folder / TRUSTED).read_bytes(), key, certificate)


def server_is(name: str) -> list[tuple[str, str]]:
    """Options of a channel: the server's certificate must be for `name`, whatever address it has moved to."""
    return [("grpc.ssl_target_name_override", name)]
