"""Prints the versions of Python and of the packages that kinema names, as they are in the environment that runs it."""

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

names = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requires("kinema") or ()}
found = [f"python {platform.python_version()}"]
for name in sorted(names):
    try:
        found.append(f"{name} {version(name)}")
    except PackageNotFoundError:
        pass  # of an extra that is not installed
print(", ".join(found))
