"""Implementations to copy from, in the frameworks that people use; each passes the kit."""
