"""SQL as text, cut into tokens as SQLite reads them. No database is opened here."""

import re

MAX_QUERY = 100_000  # bytes of one query

# A quote or comment that is never closed reaches to the end of the text. A backtick inside a name in
# backticks is written twice; here `a``b` is read as two names side by side, which cover the same characters.
QUOTED = r"""'(?:[^']|'')*(?:'|\Z)|"(?:[^"]|"")*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)"""
BLOCK_COMMENT = r"/\*(?s:.*?)(?:\*/|\Z)"
COMMENT = rf"--[^\n]*|{BLOCK_COMMENT}"
SPACE = r"[ \t\n\f\r]"  # every other white space of Unicode may be part of a name
TOKEN = re.compile(rf"{QUOTED}|{COMMENT}|{SPACE}+|\w+|(?s:.)")


def one_line(statement: str) -> str:
    """The statement without comments, with one blank for white space between tokens; quotes stay."""
    return re.sub(rf"({QUOTED})|(?:{SPACE}|{COMMENT})+", lambda match: match[1] or " ", statement).strip(" ")


def words(query: str) -> list[str]:
    """The tokens in lower case, without white space and comments."""
    tokens = (token.lower() for token in TOKEN.findall(query))
    return [token for token in tokens if not token.isspace() and token[:2] not in ("--", "/*")]


def cut(query: str) -> str:
    """The query itself, or so much of it that it is still too long to run: no work is done on the rest."""
    return query[: MAX_QUERY + 1]


def spider_query(query: str, keep_distinct: bool) -> str:
    """The official preparation: `> =` becomes `>=`, MySQL's current year becomes 2020, DISTINCT goes.

    A text that is too long to run stays as it is.
    """
    if len(query) > MAX_QUERY:
        return query
    for operator in (">", "<", "!"):
        query = query.replace(f"{operator} =", f"{operator}=")
    query = re.sub(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", "2020", query, flags=re.IGNORECASE)
    if keep_distinct:
        return query
    return "".join(token for token in TOKEN.findall(query) if token.lower() != "distinct")


def orders(query: str) -> bool:
    """Whether ORDER BY stands anywhere in the text, as Spider's evaluator looks for it."""
    return "order by" in query.lower()


def outermost_orders(query: str) -> bool:
    """Whether ORDER BY stands outside all parentheses."""
    depth, last = 0, ""
    for word in words(query):
        depth += (word == "(") - (word == ")")
        if depth == 0 and (last, word) == ("order", "by"):
            return True
        last = word
    return False
