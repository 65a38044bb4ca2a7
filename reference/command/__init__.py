"""The command `adamshap` and its subcommand `attribute`: data in, tables and files out. None of the method's maths."""
