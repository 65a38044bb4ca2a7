"""The harness: checks the engine, and anybody's implementation, against the oracle."""
