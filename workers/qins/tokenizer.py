"""Text as bytes: token i is the byte i."""

from __future__ import annotations

from collections.abc import Iterable


class ByteTokenizer:
    """UTF-8 bytes as tokens 0..255."""

    vocabulary = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`; a lone surrogate, which no UTF-8 has, becomes '?'."""
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, 0..255; torn or wrong UTF-8 becomes U+FFFD. Raises ValueError for other ids."""
        return bytes(ids).decode("utf-8", errors="replace")
