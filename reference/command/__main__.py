"""``python -m adamshap.reference.command``: the same as ``adamshap``."""

from adamshap.reference.command.main import main

if __name__ == "__main__":
    main()
