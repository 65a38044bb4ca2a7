"""Scores without captures, as derivatives of the samples' losses, and their comparison with scores by captures."""
