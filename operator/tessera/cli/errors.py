"""What commands end with when they cannot do what was asked."""


class CommandError(Exception):
    """The text says what is wrong and what to do; it is printed without a traceback."""


class DeniedError(CommandError):
    """The user has no rights for what was asked."""
