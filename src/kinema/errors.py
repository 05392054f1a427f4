"""The exception for invalid user input."""


class KinemaError(ValueError):
    """Invalid user input; the message names the argument, its value and the constraint.

    The command line prints the message as one line and exits with status 2.
    """
