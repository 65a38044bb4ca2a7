"""The command `adamshap` with its subcommands `attribute` and `show`: data in, tables and files out; no mathematics."""
