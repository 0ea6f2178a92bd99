"""The networks of the recipes, free of any quantization: layers and activations are made by functions passed in."""
