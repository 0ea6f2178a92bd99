"""Talking to a model folder: text in, pieces of text out as they are generated (QN-14)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch

from workers.models.transformer import Block, ByteTransformer
from workers.qins.files import QINSModelLoader
from workers.qins.kv_cache import QINSKVCache, VFormat

Turn = tuple[str, str]
"""What was asked, and what was answered."""


class QINSChatSystem:
    """Generates text with the model in a folder.

    Args:
        path: a model folder.
        max_tokens: of one answer; bytes.
        temperature: 0 takes the likeliest byte; above, bytes are drawn.
        seed: decides the draws, together with how many answers came before.
        v_format: how the attention cache of an answer keeps values, which is used until the text fills the model's
            context; None: each byte is computed from all those before it.

    Raises:
        CheckpointError: the folder cannot be read.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        max_tokens: int = 200,
        temperature: float = 0.0,
        seed: int = 0,
        v_format: VFormat | None = None,
    ) -> None:
        model, self.tokenizer = QINSModelLoader().load(path)
        self.model = cast(ByteTransformer, model)
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed
        self.v_format = v_format

    def generate_streaming(self, prompt: str, history: Sequence[Turn] = ()) -> Iterator[str]:
        """Yield the answer to `prompt` in pieces, each of whole characters; what is no UTF-8 becomes U+FFFD.

        The model sees the last bytes of the conversation that fit in its context, and no more of it as the answer grows.

        Raises:
            ValueError: there is no text at all.
        """
        text = "".join(asked + answered for asked, answered in history) + prompt
        if not text:
            raise ValueError("there is no text to go on from; write a prompt")
        generator = torch.Generator().manual_seed(self.seed + len(history))
        tokens = torch.tensor(self.tokenizer.encode(text))
        caches = None if self.v_format is None else caches_for(self.model, 1, self.v_format)
        return self._pieces(self.model.generate(tokens, self.max_tokens, self.temperature, generator, caches))

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in tokens:
            if piece := decoder.decode(bytes([token])):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest


def caches_for(model: ByteTransformer, batch: int, v_format: VFormat) -> list[QINSKVCache]:
    """A cache for each block of `model`, as long as its context."""
    width = model.token_embedding.embedding_dim
    heads = [cast(Block, block).heads for block in model.blocks]
    return [QINSKVCache(batch, model.context, each, width // each, v_format) for each in heads]
