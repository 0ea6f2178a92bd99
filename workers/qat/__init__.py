"""Quantization-aware training: fake-quantized weights in training, integer weights afterwards."""
