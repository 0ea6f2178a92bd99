"""QINS: a logarithmic code for numbers at rest, linear layers and model files that hold it, and what it costs."""

from workers.qins.codec import Encoded, QINSCodec
from workers.qins.convert import convert_model_to_projective
from workers.qins.linear import QINSLinear

__all__ = ["Encoded", "QINSCodec", "QINSLinear", "convert_model_to_projective"]
