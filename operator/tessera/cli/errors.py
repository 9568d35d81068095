"""Errors that end a command."""


class CommandError(Exception):
    """Says what is wrong and what to do; printed without a traceback."""


class DeniedError(CommandError):
    """The user lacks a permission."""
