"""Broken and hostile checkpoints before our readers."""
