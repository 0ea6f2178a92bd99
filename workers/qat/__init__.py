"""Quantization-aware training: observers and fake-quantization in training, packed integer codes afterwards."""
