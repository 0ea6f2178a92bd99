"""Whether a host computes, keeps and stores what it should: `python -m workers.host_test FOLDER` prints what fails.

Known answers in whole numbers, which are exact in every order and on every processor.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

import numpy as np

SIZE = 384
ROUNDS = 4
EXACT = ((np.float32, 64), (np.float64, 1 << 20))
"""With factors that are less, sums of `SIZE` products stay within 2^24 and 2^53, where every whole number is a float."""

MEMORY_BYTES = 64 << 20
DISK_BYTES = 1 << 20
PATTERNS = (0x5555555555555555, 0xAAAAAAAAAAAAAAAA)


def failures(folder: Path) -> list[str]:
    """A sentence for each thing that is not as it should be; none where the host is well."""
    return [*arithmetic(), *memory(), *disk(folder)]


def arithmetic() -> list[str]:
    """Products of matrices of small whole numbers: floats have to give what integers give, bit for bit, each time."""
    found = []
    for number in range(ROUNDS):
        source = np.random.Generator(np.random.PCG64(number))
        for kind, most in EXACT:
            left, right = (source.integers(-most, most, (SIZE, SIZE)) for _ in range(2))
            if not np.array_equal(left.astype(kind) @ right.astype(kind), left @ right):
                found.append(f"a product of {kind.__name__} matrices (seed {number}) is wrong")
    return found


def memory() -> list[str]:
    """What is written is read again, in `MEMORY_BYTES` at once."""
    room = np.empty(MEMORY_BYTES // 8, dtype=np.uint64)
    found = []
    for pattern in PATTERNS:
        room[:] = pattern
        wrong = int(np.count_nonzero(room != pattern))
        if wrong:
            found.append(f"{wrong} words of {MEMORY_BYTES >> 20} MiB of memory do not keep {pattern:#x}")
    return found


def disk(folder: Path) -> list[str]:
    """A file in `folder` is what was written to it."""
    path, content = folder / f".host-test-{secrets.token_hex(4)}", secrets.token_bytes(DISK_BYTES)
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return [] if path.read_bytes() == content else [f"a file in {folder} is not what was written to it"]
    except OSError as error:
        return [f"a file in {folder} cannot be written and read: {error.strerror}"]
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(failures(Path(sys.argv[1]))))
