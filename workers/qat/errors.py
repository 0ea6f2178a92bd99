"""What a user can get wrong about quantization: each message is one sentence that says what, where, what to do."""

from __future__ import annotations

from workers.errors import TaskError


class QuantizationError(TaskError):
    """A model cannot be calibrated, converted or loaded as it is."""
