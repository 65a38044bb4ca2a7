"""Captures of a PyTorch model's passes: hooks on its modules, and passes that run again instead of keeping captures."""
