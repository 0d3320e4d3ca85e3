"""Question → prompt → tokens, and a model's answer → the code inside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import tasks
from cli import UserError
from data import Question
from database import schema
from verifier import sql_text
from verifier.sql_text import MAX_QUERY


def prompt(question: Question) -> str:
    """The zero-shot prompt: schema first, question last: a database's questions share their prefix."""
    if question.language == "python":
        return question.text
    evidence = f"Hint: {question.evidence}\n" if question.evidence else ""
    return (
        "Write one SQLite query that answers the question. Reply with the query only.\n\n"
        f"{schema(question.database)}\n\n{evidence}Question: {question.text}"
    )


# A template calls strftime_now(format) for today's date. Only texts can be handed to a template, not another
# function, so this is put before it: the same function for the date whose parts are given as texts, {"%d":
# "26", …}.
DATE_CODES = [f"%{sign}{letter}" for letter in "aAbBhdejmyYCDFGguUVwWxHIklMpPrRSTX%" for sign in ("", "-")]
DAY_OF_TEMPLATE = (
    "{%- macro strftime_now(format) -%}{%- set text = namespace(value=format) -%}"
    "{%- for code, part in date_parts.items() -%}{%- set text.value = text.value.replace(code, part) -%}"
    "{%- endfor -%}{{ text.value }}{%- endmacro %}\n"
)


def prompt_ids(question: Question, tokenizer: Any, day: str | None = None) -> list[int]:
    """The prompt's tokens: through the tokenizer's chat template where it has one, else followed by "SQL:".

    What looks like a special token in the question or its schema is tokenised as plain text. `day` ("26 Jul
    2024") is the date that a template prints in place of today's, so that a run has the same prompts on every
    day. Raises UserError where the tokenizer reads a special token even from plain text.
    """
    text = prompt(question)
    if not tokenizer.chat_template:
        told = question.form == "program" and not tasks.begins_program(question.text)
        text += "\n[BEGIN]\n" if told else "\n" if question.language == "python" else "\nSQL:\n"
        plain = _plain_ids(text, tokenizer)
        whole = tokenizer(text, split_special_tokens=True)["input_ids"]
        # some tokenizers add an end token after the text: the answer comes before it
        start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), len(whole))
        return whole[: start + len(plain)]
    if question.form == "program":
        begins = tasks.begins_program(question.text)
        text = "Complete the function. " * begins + f"Reply with Python code only.\n\n{text}"
    if question.form == "python":
        text = (
            f"Complete the program. Reply with the missing code only, between <code> and </code>.\n\n{text}"
        )
    try:
        return _chat_ids(text, tokenizer, day)
    except ValueError as error:
        raise UserError(f"the prompt of question {question.index} cannot be made: {error}.")


def _chat_ids(text: str, tokenizer: Any, day: str | None = None) -> list[int]:
    """A user's message in the chat template, up to where the answer begins; raises ValueError without one."""
    template = tokenizer.get_chat_template()
    # the answer is code from its first token on; most templates ignore it
    settings: dict[str, Any] = {"enable_thinking": False}
    if day is not None:
        template = DAY_OF_TEMPLATE + template
        date = datetime.strptime(day, "%d %b %Y")
        settings |= {"date_string": day, "date_parts": {code: date.strftime(code) for code in DATE_CODES}}
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], chat_template=template, add_generation_prompt=True,
        return_dict=False, sanitize_control_tokens=True, **settings,
    )  # fmt: skip
    if tokenizer.decode(ids[-16:]).rstrip().endswith("<think>"):  # a template that always opens it: close it
        ids += _plain_ids("\n</think>\n\n", tokenizer)
    return ids


def code_ids(code: str, tokenizer: Any) -> tuple[int, ...]:
    """Code as an answer: its tokens, whose `answer_text` is the code again, and the end token.

    Only where a tokenizer cannot write the code (it may normalise its letters) is the text another one.
    """
    ids = _plain_ids(code, tokenizer)
    if answer_text(ids, tokenizer) != code:
        ids = next((way for way in _other_ways(code, tokenizer) if answer_text(way, tokenizer) == code), ids)
    return (*ids, tokenizer.eos_token_id)


def _other_ways(code: str, tokenizer: Any) -> Iterator[list[int]]:
    """Tokens of the code as SentencePiece writes it inside a text: at a text's beginning a space changes.

    It is tokenised behind a character, whose tokens are cut off: several are tried, because one may merge
    with the code. The last way writes the space that such a tokenizer takes away.
    """
    for before in "\n>:":
        first, both = _plain_ids(before, tokenizer), _plain_ids(before + code, tokenizer)
        if both[: len(first)] == first:
            yield both[len(first) :]
    yield _plain_ids(" " + code, tokenizer)


def answer_text(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of an answer's tokens, special ones too, as it stands behind the prompt.

    A number that is no token of the tokenizer's (some models have more rows than tokens) becomes U+FFFD.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    if None in tokens:
        n = tokens.index(None)
        return answer_text(ids[:n], tokenizer) + "\ufffd" + answer_text(ids[n + 1 :], tokenizer)
    if not begins_a_line(tokenizer, str(tokenizer.chat_template or "")):
        return tokenizer.decode(ids)
    # SentencePiece tokenizers take a text's first space away; behind a letter nothing is taken away
    letter = _plain_ids("x", tokenizer)
    return tokenizer.decode([*letter, *ids]).removeprefix(tokenizer.decode(letter))


@lru_cache(maxsize=8)
def begins_a_line(tokenizer: Any, template: str) -> bool:
    """Whether prompts end with white space, so that spaces at an answer's beginning are indentation.

    template: the tokenizer's chat template as text, so that a result is remembered for this template alone.
    Otherwise (behind `[/INST]`, say) the answer is a text of its own: a chat model of the SentencePiece kind
    then writes a space first, which separates the answer from the prompt and is no part of it.
    """
    if not template:
        return True  # `prompt_ids` puts a line break at the end
    return tokenizer.decode(_chat_ids("x", tokenizer))[-1:].isspace()


def _plain_ids(text: str, tokenizer: Any) -> list[int]:
    """Tokens of a text as it stands: none is added, and what looks like a special token is not one."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


# Where a query begins: behind the line of a fence, or at SELECT or WITH, which may stand on the fence's line
# (behind the name of a language) or at the start of another. A block comment may stand before them, and
# comments of both forms between WITH and the name that it defines. What makes a beginning holds nothing that
# could end a query (a semicolon, a fence, a blank line), or a text that has ended could get another beginning
# when more of it comes. A text that only looks like a beginning must take no time: `++` and `*+` give nothing
# back; the comments of a GAP stay on their line; and LEAD matches at the start of every line, so that it is
# read once, whether or not QUERY follows.
BLANK = r"\n[^\S\n]*\n"
INSIDE = rf"(?:(?!\*/|```|{BLANK})[^;])*+"  # a block comment before a query, without its signs
SHORT = r"/\*(?:(?!\*/|```)[^;\n])*+\*/"
GAP = rf"(?:(?:[^\S\n]|{SHORT})++(?:--(?:(?!```)[^;\n])*+)?+\n?+|\n)(?:[^\S\n]|{SHORT})*+"
NAME = r"(?:\"[^\"`;\n]*\"|\[[^\]`;\n]*\]|`[^`;\n]+`|(?:(?!```|--|/\*)[^\s;(])++)"
QUERY = rf"(?=select\b|with{GAP}(?:recursive{GAP})?{NAME}(?:{GAP})?(?:\(|as\b))"
LEAD = rf"(?:[ \t(]|/\*{INSIDE}\*/\n?)*+"
LANGUAGE = r"(?:(?!```|--|/\*)[^\s;(])++[ \t]*+"
BEGIN = re.compile(
    rf"(?P<fence>```+)(?:[ \t]*+(?:{LANGUAGE})??(?={LEAD}{QUERY})|(?:(?!```)[^\n])*+\n?)"
    rf"|^{LEAD}(?P<bare>{QUERY})?",
    re.IGNORECASE | re.MULTILINE,
)
# A block comment, or what only begins like one and is never closed: that is read once, then hidden from
# BEGIN.
MAYBE_COMMENT = re.compile(rf"/\*{INSIDE}(\*/)?")
# Where it ends: at a fence, a semicolon or a blank line outside quotes and comments. Two fences count even
# inside them, because there they are Markdown's: one that starts a line, and one that ends the line of a `--`
# comment.
LINE_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
END = re.compile(
    rf"(?P<end>```|;|(?P<blank>{BLANK}))|{sql_text.QUOTED}|--(?:(?!```[ \t\r]*\n)[^\n])*"
    rf"|{sql_text.BLOCK_COMMENT}"
)


# DS-1000's official postprocessing: what stands between these, the first only where the answer begins with it
TAGS = (("```python", "```"), ("<code>", "</code>"), ("", "</code>"), ("", "\nEND SOLUTION"))
END_CHARACTERS = {";", "`", "\n"} | {
    end[-1] for _, end in TAGS
}  # code can have ended only after one of these


# what a model thinks before it answers; where it has not come to an end, there is no answer yet
THOUGHT = re.compile(r"(?:\s*<think>(?s:.*?)(?:</think>(?:[^\S\n]*\n)*|\Z))+")


def extract_code(text: str, form: str = "sql") -> str:
    """The code inside a model's answer. Thinking at its beginning is skipped; if that is not closed: none.

    form: `Question.form`. sql: from its first fence, SELECT or WITH to the next `;`, fence or blank line.
    python: DS-1000's official rule. program: `tasks.cut`.

    A blank line ends a bare query alone, not one inside a fence. Inside quotes and comments only a fence that
    starts a line ends it, or one that ends a `--` comment's line. Without a beginning: all of it.
    """
    return _cut(text, form)[0]


def code_ended(text: str, form: str = "sql") -> bool:
    """True once nothing that follows could change `extract_code`: sampling stops here."""
    return _cut(text, form)[1]


def _cut(text: str, form: str) -> tuple[str, bool]:
    thought, cut = THOUGHT.match(text), {"sql": _cut_sql, "python": _cut_python, "program": tasks.cut}[form]
    return cut(text[thought.end() :] if thought else text)


def _cut_python(text: str) -> tuple[str, bool]:
    ended = False
    for start, end in TAGS:
        begin = len(start) if text.startswith(start) else 0
        stop = text.find(end, len(start))
        ended = ended or stop >= 0
        text = text[begin : stop if stop >= 0 else len(text)]
    return text, ended


def _cut_sql(text: str) -> tuple[str, bool]:
    text = text[: MAX_QUERY + 1]  # longer code is an error to the judge, so no more of it needs to be read
    visible = MAYBE_COMMENT.sub(lambda found: found[0] if found[1] else found[0].replace("/*", ";;"), text)
    begins = (match for match in BEGIN.finditer(visible) if match["fence"] or match["bare"] is not None)
    begin = next(begins, None)
    if not begin:
        return text.strip(), False
    fenced = bool(begin["fence"])
    start = begin.end() if fenced else begin.start()
    fence = LINE_FENCE.search(text, start)
    stop = fence.start() if fence else len(text)
    for match in END.finditer(text, start, stop):
        if match.group("end") and not (fenced and match.group("blank")):
            return text[start : match.start()].strip(), True
    return text[start:stop].strip(), bool(fence)


# What SQLite reads as one token though sql_text.TOKEN takes it apart: operators, numbers and blobs (`x'00'`).
# White space inside one of them makes other code of it.
CODE = re.compile(
    r"[<>=!]=|<>|<<|>>|\|\||->>?|\.?\d[\d.]*(?:[eE][+-]?\d+)?\w*|[xX]'[^']*'|" + sql_text.TOKEN.pattern
)
LOWER = {
    ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
}  # the letters whose case SQLite ignores


def normal_form(code: str, language: str) -> str:
    """One text for all ways of writing the same code; empty where there is none.

    SQL: without comments and the semicolon at the end, with one blank between tokens, in lower case outside
    quotes. Python: without blanks at the end of a line and empty lines around the code.
    """
    if language == "python":
        return re.sub(r"(?<![\\ \t\f\r])[ \t\f\r]+$", "", code, flags=re.MULTILINE).strip("\n")
    tokens = [
        token for token in CODE.findall(code) if token.strip(" \t\n\f\r") and token[:2] not in ("--", "/*")
    ]
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return " ".join(token if token[0] in "'\"`[" else token.translate(LOWER) for token in tokens)
