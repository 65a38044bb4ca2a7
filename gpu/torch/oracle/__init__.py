"""A PyTorch model's step for the oracle, and the comparison of scores with exact marginals."""
