"""How does a command say that it cannot go on?"""


class CommandError(Exception):
    """A command fails; the text tells the user why."""

    exit_code = 1


class UsageError(CommandError):
    """What the user gave on the command line cannot be worked on."""

    exit_code = 2
