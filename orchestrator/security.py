"""`security` of the JobSpec: where the control plane may speak without TLS."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Annotated

from pydantic import Field, Strict

from workers.settings import Config


class Plaintext(StrEnum):
    """Where agents and operators may talk to the coordinator without certificates."""

    NEVER = "never"
    LOOPBACK = "loopback"
    """Where nobody outside of the machine can listen or connect."""
    ANYWHERE = "anywhere"


class SecurityConfig(Config):
    """Who may talk to a job's coordinator."""

    plaintext: Annotated[Plaintext, Strict(False)] = Field(
        Plaintext.LOOPBACK,
        description="Where agents and operators may talk to the coordinator without TLS: `loopback`, on addresses that "
        "only this machine reaches; `never`; `anywhere`, for a network on which you trust everybody.",
    )

    def needs_tls(self, address: str) -> bool:
        """Must who connects to a coordinator at this IP address show a certificate?"""
        match self.plaintext:
            case Plaintext.NEVER:
                return True
            case Plaintext.ANYWHERE:
                return False
            case Plaintext.LOOPBACK:
                return not is_loopback(address)


def is_loopback(address: str) -> bool:
    """Is this an IP address that only the machine itself reaches? A name of a host is none."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False
