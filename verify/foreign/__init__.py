"""Running other people's code: worker processes, their messages and time limits, and protection from side effects."""
