"""The claims about attribution under Adam, put to the test on real data: one module a claim, one page for all."""
