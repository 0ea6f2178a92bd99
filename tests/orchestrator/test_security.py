"""Where a coordinator may speak without TLS, by the JobSpec."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import jobspec
from orchestrator.errors import UserError
from orchestrator.security import Plaintext, SecurityConfig, is_loopback


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.0.0.254", True),
        ("::1", True),
        ("[::1]", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("fe80::1", False),
        ("localhost", False),  # a name may be anybody's
        ("", False),
    ],
)
def test_plaintext_is_for_loopback_unless_it_is_asked_for(address: str, loopback: bool) -> None:
    assert is_loopback(address) == loopback
    assert SecurityConfig().needs_tls(address) == (not loopback)
    assert SecurityConfig(plaintext=Plaintext.NEVER).needs_tls(address)
    assert not SecurityConfig(plaintext=Plaintext.ANYWHERE).needs_tls(address)


def test_it_is_a_group_of_the_jobspec(tmp_path: Path) -> None:
    job = tmp_path / "demo.yaml"
    job.write_text("name: demo\nsecurity: {plaintext: never}\n")
    assert jobspec.load(job, []).security.plaintext is Plaintext.NEVER
    assert jobspec.load(job, ["security.plaintext=anywhere"]).security.plaintext is Plaintext.ANYWHERE
    with pytest.raises(UserError, match=r"security.plaintext") as refusal:
        jobspec.load(job, ["security.plaintext=yes"])
    assert "never" in str(refusal.value) and "loopback" in str(refusal.value) and "anywhere" in str(refusal.value)
