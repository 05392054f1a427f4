"""A seeded fuzzer of the command line: damaged files and odd words in, one clear line out.

`make fuzz` runs it; `python -m fuzz --help` tells how to look at one case.
"""
