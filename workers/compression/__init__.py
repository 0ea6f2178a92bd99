"""Gradients in fewer bytes: codecs, what they leave behind, and low rank. Pure functions of float32 CPU tensors."""
