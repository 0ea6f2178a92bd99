"""Linear layers that hold QINS codes: one that decodes before it computes, and the legacy one that computes on codes."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from workers.qins.codec import LARGEST_CODE, QINSCodec

CachePolicy = Literal["none", "lru", "all"]
"""`none`: decode at each call, 2 bytes per weight. `all`: keep the decoded weight, 6 bytes per weight. `lru`: keep those
that were used last, within the limit of `recently_used`."""

LIMIT_BYTES = 256 << 20

BUFFERS = ("stored", "sign", "log_min", "log_max")


class _Cached(NamedTuple):
    """A decoded weight, and the buffers it came from with their version counters and addresses; empty where they have
    none."""

    weight: Tensor
    source: tuple[tuple[Tensor, int, int], ...]


class RecentlyUsed:
    """Which layers of the policy `lru` keep their decoded weight: those used last, of at most `limit_bytes` in all.

    A layer that would not fit alone keeps none. Any thread.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes, self._total = limit_bytes, 0
        self._lock = threading.Lock()
        self._layers: OrderedDict[weakref.ref[QINSLinear], int] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """That are kept."""
        with self._lock:
            self._drop_dead()
            return self._total

    def limit(self, limit_bytes: int) -> None:
        """Keep no more than this from now on."""
        with self._lock:
            self.limit_bytes = limit_bytes
            self._shrink()

    def keep(self, layer: QINSLinear, cached: _Cached) -> None:
        """It was just used, and keeps its weight where there is room and what that was decoded from is known."""
        with self._lock:
            self._remove(weakref.ref(layer))
            num_bytes = cached.weight.nbytes
            layer._cached = cached if num_bytes <= self.limit_bytes and cached.source else None
            if layer._cached is not None:
                self._layers[weakref.ref(layer)] = num_bytes
                self._total += num_bytes
                self._shrink()

    def forget(self, layer: QINSLinear) -> None:
        """It keeps none."""
        with self._lock:
            self._remove(weakref.ref(layer))

    def _remove(self, reference: weakref.ref[QINSLinear]) -> None:
        self._total -= self._layers.pop(reference, 0)

    def _drop_dead(self) -> None:
        for reference in [each for each in self._layers if each() is None]:
            self._remove(reference)

    def _shrink(self) -> None:
        if self._total > self.limit_bytes:
            self._drop_dead()
        while self._total > self.limit_bytes:
            oldest = next(iter(self._layers))
            if (layer := oldest()) is not None:
                layer._cached = None
            self._remove(oldest)


recently_used = RecentlyUsed()
"""Of this process."""


class QINSLinear(nn.Module):
    """Takes the place of an `nn.Linear`: y = x Wᵀ + b with W decoded from QINS codes. The weight is not trained.

    Buffers: `stored` uint8 and `sign` int8 [out_features, in_features], `log_min` and `log_max` float32, 0-dim; parameter
    `bias` float32 [out_features] or None. They keep these dtypes whatever the module is cast to. Fresh, the weight is 0.

    Args:
        in_features, out_features, bias: as for `nn.Linear`.
        cache: whether the decoded weight is kept (`CachePolicy`), outside the state dict. It is dropped when a buffer is
            replaced, changed in place, loaded, moved or cast; after a change behind torch's back
            (`buffer.data[0] = 1`), call `invalidate_cache`.
    """

    stored: Tensor
    sign: Tensor
    log_min: Tensor
    log_max: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, cache: CachePolicy = "lru") -> None:
        super().__init__()
        self.in_features, self.out_features, self.cache = in_features, out_features, cache
        self.register_buffer("stored", torch.full((out_features, in_features), LARGEST_CODE, dtype=torch.uint8))
        self.register_buffer("sign", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("log_min", torch.zeros((), dtype=torch.float32))
        self.register_buffer("log_max", torch.zeros((), dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=torch.float32)) if bias else None
        self._cached: _Cached | None = None

    @classmethod
    def from_linear(cls, layer: nn.Linear, *, name: str = "weight", cache: CachePolicy = "lru", floor: float = 0.0) -> Self:
        """`layer` with its weight encoded, on the `floor` of `QINSCodec.encode`. `layer` keeps its weight; the new one has
        its device and mode.

        Raises:
            ValueError: QINS refuses the weight; `name` is what the message calls it.
        """
        cast = layer.weight.dtype in (torch.float16, torch.bfloat16)
        code = QINSCodec.encode(layer.weight, name=name, cast=cast, floor=floor)
        new = cls(layer.in_features, layer.out_features, layer.bias is not None, cache=cache)
        for buffer, value in zip(BUFFERS, code, strict=True):
            setattr(new, buffer, value)
        if layer.bias is not None:
            new.bias = nn.Parameter(layer.bias.detach().to(torch.float32, copy=True), layer.bias.requires_grad)
        return new.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], in the floating dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)

    @property
    def weight(self) -> Tensor:
        """The decoded weight, float32 [out_features, in_features]."""
        cached = self._cached
        if cached is None or not self._is_fresh(cached):
            cached = self._decoded()
        if self.cache == "lru":
            recently_used.keep(self, cached)
        else:
            self._cached = cached if self.cache == "all" and cached.source else None
        return cached.weight

    @property
    def cached_bytes(self) -> int:
        """Bytes of the decoded weight that is kept at present."""
        cached = self._cached
        return 0 if cached is None else cached.weight.nbytes

    def invalidate_cache(self) -> None:
        """Forget the decoded weight."""
        self._cached = None
        if self.cache == "lru":
            recently_used.forget(self)

    def _decoded(self) -> _Cached:
        """What was looked at before the weight was decoded: a change meanwhile makes it stale."""
        buffers = [getattr(self, name) for name in BUFFERS]
        counts = not any(buffer.is_inference() for buffer in buffers)  # inference tensors count no versions
        source = tuple((buffer, buffer._version, buffer.data_ptr()) for buffer in buffers) if counts else ()
        with torch.inference_mode(False):
            return _Cached(QINSCodec.decode(*buffers), source)

    def _is_fresh(self, cached: _Cached) -> bool:
        return all(
            buffer is (now := getattr(self, name)) and now._version == version and now.data_ptr() == address
            for name, (buffer, version, address) in zip(BUFFERS, cached.source, strict=True)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as told, but keep the dtypes: a range in half precision is another range."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)
        self.invalidate_cache()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class ProjectiveLinear(QINSLinear):
    """Legacy, for compatibility tests only: multiplies with the codes themselves, which is wrong (QN-1).

    The weight is sign · (255 - stored) / 254, a logarithm taken for a number.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, cache: CachePolicy = "lru") -> None:
        warnings.warn(
            "ProjectiveLinear computes on QINS codes, which gives wrong results; use QINSLinear (QINS_CODEC_AT_REST=1)",
            DeprecationWarning,
            stacklevel=2,
        )
        super().__init__(in_features, out_features, bias, cache=cache)

    @property
    def weight(self) -> Tensor:
        """The codes as if they were weights, float32 [out_features, in_features]."""
        return self.sign * ((LARGEST_CODE - self.stored.to(torch.float32)) / (LARGEST_CODE - 1))
