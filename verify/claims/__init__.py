"""Tests the claims about attribution under Adam on real data: one module for each claim, one page for all."""
