"""A small decoder-only transformer over bytes (Vaswani et al., "Attention Is All You Need", 2017; pre-norm as in GPT-2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

MakeLinear = Callable[[int, int, bool], nn.Module]
"""(in_features, out_features, bias) to a layer with `weight` [out, in] and `bias` [out] or None."""

WrapActivation = Callable[[str], nn.Module]
"""The dotted name of a linear or convolution to the module that its input passes through first."""


class AttentionCache(Protocol):
    """Keys and values of the tokens so far, of one block; `workers.qins.kv_cache` has one."""

    current_len: int

    def update(self, k: Tensor, v: Tensor) -> None:
        """Append those of the next tokens, [B, heads, t, width / heads]."""

    def get_kv(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """All of them, [B, heads, current_len, width / heads]."""

    def reset(self) -> None:
        """Forget them."""


class Block(nn.Module):
    """Causal self-attention, then a two-layer perceptron, each added to its input: [B, L, width] to [B, L, width]."""

    def __init__(self, name: str, width: int, heads: int, make_linear: MakeLinear, wrap: WrapActivation) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv_input = wrap(f"{name}.qkv")
        self.qkv = make_linear(width, 3 * width, True)
        self.out_input = wrap(f"{name}.out")
        self.out = make_linear(width, width, True)
        self.perceptron_norm = nn.LayerNorm(width)
        self.up_input = wrap(f"{name}.up")
        self.up = make_linear(width, 4 * width, True)
        self.gelu = nn.GELU()
        self.down_input = wrap(f"{name}.down")
        self.down = make_linear(4 * width, width, True)

    def forward(self, x: Tensor, cache: AttentionCache | None = None) -> Tensor:
        x = x + self._attention(self.attention_norm(x), cache)
        return x + self.down(self.down_input(self.gelu(self.up(self.up_input(self.perceptron_norm(x))))))

    def _attention(self, x: Tensor, cache: AttentionCache | None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.qkv_input(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is None:
            mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            before = cache.current_len
            cache.update(key, value)
            key, value = (each.to(query.dtype) for each in cache.get_kv(batch))
            sees = torch.ones(length, before + length, dtype=torch.bool, device=x.device).tril(before)
            mixed = scaled_dot_product_attention(query, key, value, attn_mask=sees)
        return self.out(self.out_input(mixed.transpose(1, 2).reshape(batch, length, width)))


class ByteTransformer(nn.Module):
    """A language model whose tokens are bytes; its first weights are decided by torch's seed.

    The head has weights of its own: tied ones would quantize, or encode, the embedding with it, which should stay as it
    is, and they would save 32,768 of 676,992 parameters. There is no dropout: a training sees each window a few times.

    Args:
        vocabulary: number of tokens, V.
        context: most tokens that a prediction can see.
        width: of the residual stream.
        depth: number of blocks.
        heads: of attention, in each block.
        make_linear: what makes the 4 * depth + 1 linear layers; their weights and biases are set here afterwards.
        wrap_activation: what makes the module before each of them, by name (`blocks.0.qkv`, …, `head`); None: identities.

    Raises:
        ValueError: `width` is no multiple of `heads`.
    """

    def __init__(
        self,
        vocabulary: int = 256,
        context: int = 128,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        make_linear: MakeLinear = nn.Linear,
        wrap_activation: WrapActivation | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be cut into {heads} heads; give a multiple of {heads}")
        wrap = wrap_activation or _identity
        self.vocabulary, self.context = vocabulary, context
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(f"blocks.{i}", width, heads, make_linear, wrap) for i in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head_input = wrap("head")
        self.head = make_linear(width, vocabulary, False)
        self._set_first_weights(depth)

    def forward(self, tokens: Tensor, caches: Sequence[AttentionCache] | None = None) -> Tensor:
        """Logits float32 [B, L, V] of the token after each of `tokens`, int64 or uint8 [B, L].

        With `caches`, one for each block, the tokens come after those that are in them, and are added.

        Raises:
            ValueError: they are more than `context`.
        """
        before = caches[0].current_len if caches else 0
        end = before + tokens.shape[1]
        if end > self.context:
            raise ValueError(f"the text has {end} tokens, but the model sees {self.context}; give the last {self.context}")
        positions = torch.arange(before, end, device=tokens.device)
        x = self.token_embedding(tokens.long()) + self.position_embedding(positions)
        for index, block in enumerate(self.blocks):
            x = block(x, caches[index] if caches else None)
        logits: Tensor = self.head(self.head_input(self.norm(x)))
        return logits

    def generate(
        self,
        tokens: Tensor,
        num: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        caches: Sequence[AttentionCache] | None = None,
    ) -> Iterator[int]:
        """Yield `num` tokens that go on after `tokens`, int64 or uint8 [L], L ≥ 1, each as soon as it is known.

        The likeliest token, the first of equals, at temperature 0; else a draw from softmax(logits / temperature) by
        `generator`. Each token is computed from the last `context` ones; with `caches`, one for each block, of what they
        keep, for as long as all of the text is in sight: positions are counted from the first token that is. No two texts
        may share caches at a time.

        Raises:
            ValueError: there is no token to go on from, or the temperature is below 0.
        """
        if not len(tokens):
            raise ValueError("there is no text to go on from; give at least one token")
        if not temperature >= 0:
            raise ValueError(f"the temperature is {temperature}; write 0 for the likeliest token, or more to draw")
        return self._stream(tokens[-self.context :].long(), num, temperature, generator, caches)

    def _stream(
        self,
        seen: Tensor,
        num: int,
        temperature: float,
        generator: torch.Generator | None,
        caches: Sequence[AttentionCache] | None,
    ) -> Iterator[int]:
        for cache in caches or ():
            cache.reset()
        for _ in range(num):
            with torch.inference_mode():
                if caches and caches[0].current_len == self.context:
                    caches = None
                logits = self(seen[None, caches[0].current_len :] if caches else seen[None], caches)[0, -1]
                if temperature > 0:
                    chances = torch.softmax(logits.double() / temperature, dim=0)
                    token = torch.multinomial(chances, 1, generator=generator)
                else:
                    token = logits.argmax(keepdim=True)
                seen = torch.cat([seen, token])[-self.context :]
            yield int(token)

    def _set_first_weights(self, depth: int) -> None:
        """Normal with std 1/sqrt(fan-in), what adds to the residual stream 1/sqrt(2 * depth) of it; biases 0."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        for block in self.blocks:
            for name in ("qkv", "out", "up", "down"):
                _set(getattr(block, name), 1 / math.sqrt(2 * depth) if name in ("out", "down") else 1.0)
        _set(self.head, 1.0)


def next_token_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of the tokens `targets`, integers [B, L], under `logits` [B, L, V]; exp of the mean is the
    perplexity per token."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction=reduction)


def _identity(name: str) -> nn.Module:
    return nn.Identity()


def _set(layer: nn.Module, gain: float) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    nn.init.normal_(weight, std=gain / math.sqrt(weight.shape[1]))
    if isinstance(layer.bias, Tensor):
        nn.init.zeros_(layer.bias)
