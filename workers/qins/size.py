"""What codec v1 weighs, before anything is encoded (QN-7)."""

from __future__ import annotations

BYTES_FP32 = 4
BYTES_PER_WEIGHT = 2
"""A code and a sign."""
BYTES_PER_TENSOR = 8
"""The ends of its range, float32."""


def v1_bytes(num_parameters: int, num_encoded: int, num_tensors: int) -> int:
    """Bytes of a model of which `num_encoded` parameters in `num_tensors` tensors are encoded, the rest float32.

    Raises:
        ValueError: the numbers contradict each other.
    """
    if not 0 <= num_encoded <= num_parameters or num_tensors < 0 or (num_encoded == 0) != (num_tensors == 0):
        raise ValueError(
            f"{num_encoded} encoded of {num_parameters} parameters in {num_tensors} tensors cannot be; encoded ones are at "
            "most all of them, and they lie in at least one tensor"
        )
    rest = num_parameters - num_encoded
    return BYTES_PER_WEIGHT * num_encoded + BYTES_PER_TENSOR * num_tensors + BYTES_FP32 * rest


def v1_ratio(num_parameters: int, num_encoded: int, num_tensors: int) -> float:
    """float32 bytes over `v1_bytes`: 4N / (2 N_e + 8 L + 4 (N - N_e)). Never above 2. Raises as `v1_bytes`."""
    return BYTES_FP32 * num_parameters / max(1, v1_bytes(num_parameters, num_encoded, num_tensors))
