"""The commands of `kinema`: a module each, light to import; what is heavy is imported when a command runs.

A module has `HELP` (one line) and `add_arguments(parser)`, which also sets the default `run`: the function that does
the work, given the parsed arguments.
"""
