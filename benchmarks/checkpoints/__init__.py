"""Checkpoints, ours and others'."""
