"""The error of a command."""


class CommandError(Exception):
    """What the user asked for cannot be done; the message is all that the user sees, and the exit code is 2."""
