"""The command `manual-backprop`, a file for each of its subcommands."""

from reference.cli.command import main as main
