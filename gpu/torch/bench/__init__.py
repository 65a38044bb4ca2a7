"""The cost of an attribution in a PyTorch loop, in time and memory: ``adamshap bench --model gpt``."""
