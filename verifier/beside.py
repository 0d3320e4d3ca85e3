"""The files that SQLite keeps beside a database while somebody changes it. Every process here may ask for
them.
"""

import contextlib

SUFFIXES = ("-wal", "-journal")


def holds_data(path: str) -> bool:
    """Whether this -wal or -journal must be read. SQLite ignores one that is empty or begins with a zero.

    Raises OSError where it is there and cannot be read.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read(1) not in (b"", b"\0")
    return False
