"""The one exception that reports a mistake in what the user gave."""


class KinemaError(ValueError):
    """Wrong input from the user; the message names the argument, its value and what is allowed.

    The command line prints the message as one line and exits with status 2.
    """
