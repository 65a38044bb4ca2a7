"""Implementations to copy from, in common frameworks; each passes the kit."""
