"""The subcommands of `baleen`, by subject. Not here: the entry point and what all share (coordinator/cli.py)."""
