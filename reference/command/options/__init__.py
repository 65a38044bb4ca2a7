"""The options of ``adamshap attribute``: one module for each panel of its help, with a type for each option."""
