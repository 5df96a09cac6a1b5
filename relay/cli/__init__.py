"""The command line: one module a verb."""

from relay.cli.main import main

__all__ = ["main"]
