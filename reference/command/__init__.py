"""The command `adamshap` and its subcommand `attribute`: data in, tables and files out. No mathematics here."""
