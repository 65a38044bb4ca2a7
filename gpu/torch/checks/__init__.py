"""Checks of a PyTorch loop: mistakes that show at once, one factor for all gradients, and the optimiser's own step."""
