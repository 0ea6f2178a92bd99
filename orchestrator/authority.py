"""The certificate authority of one job: X.509 with keys on P-256. Pure but for the randomness of keys; times are passed in.

It signs certificates for exactly one peer each. What a certificate may be used for is in it: the coordinator's only to
answer, those of agents and operators only to ask, so none of them can stand in the coordinator's place.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.peers import Peer, Role, peer_named, server_name
from workers.tls import leader_name

DAY = 86400.0
AUTHORITY_DAYS = 3650
SKEW_SECONDS = 3600.0
"""A certificate is valid from so long before it was made: the clocks of hosts differ."""


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate, in PEM."""

    key: bytes
    certificate: bytes

    @property
    def pem(self) -> bytes:
        return self.key + self.certificate


@dataclass(frozen=True)
class Described:
    """What a certificate says. Times in Unix seconds."""

    name: str  # of its subject
    issuer: str  # name of the authority that signed it
    peer: Peer | None  # whom it is for; None: an authority, or nobody of the job
    begins: float
    ends: float
    fingerprint: str  # SHA-256, hex
    servers: tuple[str, ...]  # names that it may answer by


class Authority:
    """It signs. Raises ValueError where `pair` is not what `new` has made."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key of the authority is on no elliptic curve")
        if key.public_key() != self._certificate.public_key():
            raise ValueError("the key of the authority is not that of its certificate")
        self._key = key

    @classmethod
    def new(cls, job: str, now: float) -> Self:
        """One for `job`, with a name of its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, job),
                x509.NameAttribute(NameOID.COMMON_NAME, f"quantarion authority {serial:x}"),
            ]
        )
        certificate = (
            _builder(name, name, key.public_key(), now - SKEW_SECONDS, now + AUTHORITY_DAYS * DAY)
            .serial_number(serial)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(_pair(key, certificate))

    @property
    def name(self) -> str:
        """As certificates that it has signed name it."""
        return _common_name(self._certificate.subject)

    @property
    def begun(self) -> float:
        """When it was made, Unix seconds."""
        return self._certificate.not_valid_before_utc.timestamp() + SKEW_SECONDS

    @property
    def ends(self) -> float:
        """Unix seconds."""
        return self._certificate.not_valid_after_utc.timestamp()

    def issue(self, peer: Peer, job: str, now: float, seconds: float) -> Pair:
        """A new key and a certificate for `peer`, for so long, though not for longer than the authority's own."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(peer)[:64])])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(peer.uri(job))]
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if peer.role is Role.COORDINATOR:
            names.append(x509.DNSName(server_name(job)))
            uses = [ExtendedKeyUsageOID.SERVER_AUTH]
        elif peer.role is Role.AGENT:  # it may come to lead others
            names.append(x509.DNSName(leader_name(job, peer.host)))
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        ends = min(now + seconds, self.ends)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key(), now - SKEW_SECONDS, ends)
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pair(key, certificate)


def describe(certificates: bytes, job: str) -> list[Described]:
    """What the certificates in a PEM file say. Raises ValueError where there is none."""
    return [_describe(each, job) for each in x509.load_pem_x509_certificates(certificates)]


def _describe(certificate: x509.Certificate, job: str) -> Described:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
        servers = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        uris, servers = [], []
    return Described(
        _common_name(certificate.subject),
        _common_name(certificate.issuer),
        peer_named(uris, job),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        certificate.fingerprint(hashes.SHA256()).hex(),
        tuple(servers),
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: float, ends: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .not_valid_before(datetime.fromtimestamp(int(begins), UTC))
        .not_valid_after(datetime.fromtimestamp(int(ends), UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Pair:
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(private, certificate.public_bytes(serialization.Encoding.PEM))


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""
