"""PowerSGD: a gradient matrix as the product of two thin ones (Vogels, Karimireddy, Jaggi, NeurIPS 2019; CC-5).

One power iteration a step, begun where the last one ended. With M the sum of the M_w of all ranks w, a step is

    P_w = M_w Q          all-reduce: P = Σ P_w       orthonormalise the columns of P
    Q_w = M_w^T P        all-reduce: Q = Σ Q_w       M ≈ P Q^T

Both reduced matrices are the same bytes everywhere, and what is computed of them is the same bits on every rank.
P Q^T = P P^T M is linear in M: the rank's own share of it is P Q_w^T, and M_w − P Q_w^T is what its error feedback keeps.
That holds for sums, weighted sums and means alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor

from workers.compression.codec import CodecError
from workers.compression.orthogonal import orthonormalise
from workers.compression.product import product
from workers.randomness import fold, uniform


class _Matrix(NamedTuple):
    rows: int
    columns: int


class PowerSGD:
    """Rank-r codec of a model's parameters; it keeps Q for each matrix, the same on all ranks.

    A parameter is a matrix of its first axis by the rest. Where r (rows + columns) numbers are no fewer than
    rows · columns, as with every vector, it travels uncompressed, with P. Q begins as numbers that only `seed` and the
    parameter's name decide. A column of Q that comes out zero, as that of a dead layer, begins so again; from zero it
    would never wake.

    Args:
        shapes: of all parameters, by name.
        rank: r, at least 1.
        seed: the job's.

    Raises:
        CodecError: the rank cannot work.
    """

    name = "powersgd"

    def __init__(self, shapes: Mapping[str, Size], rank: int, seed: int = 0) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise CodecError(f"the rank of powersgd is a whole number, 1 or more, and not {rank}; write rank: 4")
        self.rank, self._seed = rank, seed
        self._shapes = dict(shapes)
        self._matrices = {name: found for name, shape in shapes.items() if (found := _matrix(shape, rank))}
        self._warm: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    @property
    def parameters(self) -> Mapping[str, float]:
        return {"rank": self.rank}

    def compresses(self, name: str) -> bool:
        """False where the parameter travels uncompressed."""
        return name in self._matrices

    def sizes(self, names: Sequence[str]) -> tuple[int, int]:
        """Elements of float32 that the two all-reduces carry for these parameters: (P and what is uncompressed, Q)."""
        low = [self._matrices[name] for name in names if name in self._matrices]
        dense = sum(self._shapes[name].numel() for name in names if name not in self._matrices)
        return self.rank * sum(m.rows for m in low) + dense, self.rank * sum(m.columns for m in low)

    def start(self, gradients: Mapping[str, Tensor], *, alike: bool = False) -> Iteration:
        """Begin a step for some of the parameters, a bucket: float32 of their shapes, finite, in the same order everywhere.

        They are read until `finish`, so they must not change before. `Iteration.p` is to be all-reduced.

        Args:
            alike: all ranks have the same `product.fingerprint`: LAPACK and BLAS give them equal bits.
        """
        for name, gradient in gradients.items():
            if gradient.shape != self._shapes[name] or gradient.dtype != torch.float32:
                raise TypeError(
                    f"the gradient of {name} has to be float32 {list(self._shapes[name])}, not {gradient.dtype} "
                    f"{list(gradient.shape)}"
                )
        return Iteration(self, {name: gradient.detach() for name, gradient in gradients.items()}, alike)

    def commit(self) -> None:
        """The step is committed: the next one begins with its Q."""
        self._warm |= self._pending
        self._pending = {}

    def discard(self) -> None:
        """The step is discarded: the next one begins where it began."""
        self._pending = {}

    def state_dict(self) -> dict[str, Tensor]:
        """The committed Q^T, float32 [r, columns], by parameter; a joiner needs it, as Q must be the same on all ranks."""
        return {name: q.clone() for name, q in self._warm.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state_dict`, of any rank: columns too many are left out, missing ones begin anew.

        Raises:
            ValueError: it is of another model; nothing has changed.
        """
        loaded = {}
        for name, q in state.items():
            if name not in self._shapes or q.dim() != 2 or q.shape[1] != _columns(self._shapes[name]):
                raise ValueError(f"the state has a Q^T of {name}, {list(q.shape)}, that fits no parameter of the model")
            if name in self._matrices:
                fresh = self._begin(name)
                fresh[: len(q)] = q[: self.rank]
                loaded[name] = fresh
        self._warm, self._pending = loaded, {}

    def q(self, name: str) -> Tensor:
        """Q^T with which a step begins, float32 [r, columns]."""
        warm = self._warm.get(name)
        return self._begin(name) if warm is None else warm

    def keep(self, name: str, reduced: Tensor, *, alike: bool) -> None:
        """Begin the step after this one with the `reduced` Q^T, [r, columns], orthonormal so that P keeps its scale."""
        q = reduced.clone()
        orthonormalise(q, alike=alike)
        alive = q.any(dim=1)
        if not bool(alive.all()):
            q[~alive] = self._begin(name)[~alive]
        self._pending[name] = q

    def drafts(self) -> Mapping[str, Tensor]:
        """The Q^T that are pending, by name."""
        return self._pending

    def adopt(self, name: str, q: Tensor) -> None:
        """Begin the step after this one with `q`, as another rank does."""
        self._pending[name] = q.clone()

    def matrix(self, name: str) -> _Matrix | None:
        """Rows and columns; None where the parameter travels uncompressed."""
        return self._matrices.get(name)

    def _begin(self, name: str) -> Tensor:
        """float32 [r, columns], uniform in [-1, 1)."""
        keys = [fold(self._seed, row, *name.encode()) for row in range(self.rank)]
        signed = torch.tensor([key - (1 << 64) if key >> 63 else key for key in keys], dtype=torch.int64)
        return uniform(signed, self._matrices[name].columns, stream=0).mul_(2).sub_(1)


class Iteration:
    """One step of a bucket: `p` is all-reduced and given to `middle`; what that returns too, and given to `finish`."""

    def __init__(self, codec: PowerSGD, gradients: Mapping[str, Tensor], alike: bool) -> None:
        self._codec, self._gradients, self._alike = codec, gradients, alike
        self._low = {name: found for name in gradients if (found := codec.matrix(name))}
        self._dense = {name: gradients[name].shape for name in gradients if name not in self._low}
        self._dense_sizes = [shape.numel() for shape in self._dense.values()]
        self._num_p, self._num_q = codec.sizes(list(gradients))
        self._reduced_p = self._own_q = torch.empty(0)
        self.p = torch.empty(self._num_p)
        for name, part in self._thin(self.p, rows=True).items():
            torch.matmul(codec.q(name), self._matrix(name).T, out=part)
        for name, part in self._uncompressed(self.p).items():
            part.copy_(gradients[name])

    def middle(self, p_reduced: Tensor) -> Tensor:
        """This rank's Q, float32 [`sizes`[1]], to be all-reduced, from the reduced P, float32 [`sizes`[0]].

        P becomes orthonormal in place.
        """
        _check(p_reduced, self._num_p)
        self._reduced_p, self._own_q = p_reduced, torch.empty(self._num_q)
        reduced = self._thin(p_reduced, rows=True)
        for name, part in self._thin(self._own_q, rows=False).items():
            orthonormalise(reduced[name], alike=self._alike)
            torch.matmul(reduced[name], self._matrix(name), out=part)
        return self._own_q.clone()

    def rest(self, left_p: Tensor, left_q: Tensor, out: Mapping[str, Tensor]) -> None:
        """This rank's gradients less its share of what `finish` will return, which is known before Q is reduced; after
        `middle`.

        Args:
            left_p, left_q: what of the sums of P and Q was left out when they were encoded, float32 as those, and is this
                rank's to owe; zeros where they travelled as they are. Of P only what is uncompressed counts: another basis
                leaves out nothing.
            out: where to put it: for every parameter contiguous float32 of its shape.
        """
        p, q = self._thin(self._reduced_p, rows=True), self._thin(self._own_q - left_q, rows=False)
        for name, shape in self._low.items():
            torch.addmm(self._matrix(name), p[name].T, q[name], alpha=-1, out=out[name].view(shape))
        for name, left in self._uncompressed(left_p).items():
            out[name].copy_(left)

    def finish(self, q_reduced: Tensor, out: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """The reduced gradients, the same bits on all ranks, from the reduced Q, float32 [`sizes`[1]].

        That Q is pending until the codec's `commit`.

        Args:
            out: as of `rest`; it may be the gradients themselves.
        """
        _check(q_reduced, self._num_q)
        if out is None:
            out = {name: torch.empty(gradient.shape) for name, gradient in self._gradients.items()}
        p, q = self._thin(self._reduced_p, rows=True), self._thin(q_reduced, rows=False)
        for name, shape in self._low.items():
            product(p[name], q[name], out[name].view(shape), alike=self._alike)
            self._codec.keep(name, q[name], alike=self._alike)
        for name, part in self._uncompressed(self._reduced_p).items():
            out[name].copy_(part)
        return out

    def _matrix(self, name: str) -> Tensor:
        return self._gradients[name].reshape(self._low[name])

    def _thin(self, flat: Tensor, *, rows: bool) -> dict[str, Tensor]:
        """Views of the P^T, [r, rows], or the Q^T, [r, columns], that lie in `flat`."""
        parts, at = {}, 0
        for name, matrix in self._low.items():
            length = matrix.rows if rows else matrix.columns
            parts[name] = flat[at : at + self._codec.rank * length].view(self._codec.rank, length)
            at += self._codec.rank * length
        return parts

    def _uncompressed(self, flat: Tensor) -> dict[str, Tensor]:
        """Views, of the parameters' shapes, of what lies behind P."""
        if not self._dense:
            return {}
        parts = flat[flat.numel() - sum(self._dense_sizes) :].split_with_sizes(self._dense_sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._dense.items(), parts, strict=True)}


def _columns(shape: Size) -> int:
    return shape[1:].numel()


def _matrix(shape: Size, rank: int) -> _Matrix | None:
    if len(shape) < 2:
        return None
    rows, columns = shape[0], _columns(shape)
    return _Matrix(rows, columns) if rank * (rows + columns) < rows * columns else None


def _check(reduced: Tensor, count: int) -> None:
    if reduced.dtype != torch.float32 or reduced.shape != (count,) or not reduced.is_contiguous():
        raise ValueError(f"the reduced matrices have to be float32 [{count}], not {reduced.dtype} {list(reduced.shape)}")
