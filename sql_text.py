"""The tokens of SQL as SQLite reads them. No database here: `data` and `judge_sql` both build on this."""

import re

# A quote or comment that is never closed reaches to the end of the text. A backtick inside a name in backticks
# is written twice; here `a``b` is read as two names side by side, which cover the same characters.
QUOTED = r"""'(?:[^']|'')*(?:'|\Z)|"(?:[^"]|"")*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)"""
BLOCK_COMMENT = r"/\*(?s:.*?)(?:\*/|\Z)"
COMMENT = rf"--[^\n]*|{BLOCK_COMMENT}"
SPACE = r"[ \t\n\f\r]"  # every other white space of Unicode may be part of a name
TOKEN = re.compile(rf"{QUOTED}|{COMMENT}|{SPACE}+|\w+|(?s:.)")


def one_line(statement: str) -> str:
    """The statement without comments and with one blank where white space stands between tokens; quotes stay."""
    return re.sub(rf"({QUOTED})|(?:{SPACE}|{COMMENT})+", lambda match: match[1] or " ", statement).strip(" ")
