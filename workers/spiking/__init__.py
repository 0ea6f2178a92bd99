"""Spiking networks: encoders, leaky integrate-and-fire layers, surrogate gradients, losses and presets."""
