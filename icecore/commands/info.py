"""Show versions, instruction sets and threads."""

from icecore import show_config


def add_arguments(parser):
    """No arguments."""


def run(arguments):
    """Print the configuration."""
    show_config()
    return 0
