"""Stacks of layers: their properties, captures of single parameters, and the layer that wrong answers point to."""
