"""What an agent reads before it connects: where the coordinator listens, and its own certificate."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers import tls
from workers.announced import Announced, announced

KEY = b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"address": "127.0.0.1:5"}', Announced("127.0.0.1:5")),
        ('{"address": "10.0.0.1:5", "tls": "coordinator.demo", "pid": 3}', Announced("10.0.0.1:5", "coordinator.demo")),
        ('{"address": "10.0.0.1:5", "tl', None),
        ('{"pid": 3}', None),
        ("[]", None),
        (None, None),
    ],
)
def test_the_coordinator_is_where_it_says(tmp_path: Path, content: str | None, found: Announced | None) -> None:
    if content is not None:
        (tmp_path / "coordinator.json").write_text(content)
    assert announced(tmp_path) == found


def test_a_file_has_a_key_and_then_a_certificate() -> None:
    assert tls.split(KEY + CERTIFICATE) == (KEY, CERTIFICATE)
    assert tls.split(KEY + CERTIFICATE + CERTIFICATE) == (KEY, CERTIFICATE + CERTIFICATE)


@pytest.mark.parametrize("content", [b"", KEY, CERTIFICATE, CERTIFICATE + KEY, b"torn"])
def test_a_file_without_one_of_them_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / tls.TRUSTED).write_bytes(CERTIFICATE)
    (tmp_path / tls.OPERATOR).write_bytes(content)
    with pytest.raises(tls.Damaged):
        tls.channel_credentials(tmp_path, tls.OPERATOR)
