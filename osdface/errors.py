"""Errors that a person can mend. The command line prints them as one sentence, without a traceback."""


class UserError(Exception):
    """Something outside the program is wrong; the message names it and says what to do.

    Exit code 1: the command was right, its input or its surroundings were not.
    """

    exit_code = 1


class UsageError(UserError):
    """The command, an option or a configuration is wrong (exit code 2)."""

    exit_code = 2


class MissingWeights(UserError):
    """A third-party weight file is needed and not there; the message names the file and where it is looked for."""
