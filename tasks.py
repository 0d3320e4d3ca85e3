"""Python tasks whose tests are asserts: MBPP, HumanEval, and anybody's own, as questions.

A task is a row with a prompt, the gold code and its tests. The tests are a list of pieces of a program that
runs after the answer, most of them one assert each. Where they define `check`, as HumanEval's do, it is
called with the entry point afterwards.
"""

from __future__ import annotations

import ast
import re
import textwrap
from typing import Any

from data import Question


def question(index: int, row: dict, source: str = "python") -> Question:
    """One task. Raises KeyError, TypeError or ValueError, with the reason, where the row is not one.

    row: `code`, the gold code; `tests`, a list of texts or one text; and one of `text`, the task in words
    (the prompt then shows the tests as well), and `prompt`, which is used as it stands: the gold code may
    continue it. It may have `setup`, code that runs before the answer, and before the tests; `entry_point`,
    the name of the function or class that is asked for; and an id, `task_id` or `question_id`.
    source: names the data set in scores.
    """
    if ("text" in row) == ("prompt" in row):
        raise ValueError("it needs either text or prompt, and not both")
    code, setup = _code(row, "code"), _code(row, "setup", "")
    tests = row["tests"] if isinstance(row["tests"], list) else [row["tests"]]
    if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise TypeError("tests are neither a text nor a list of texts")
    tests = [test.replace("\r\n", "\n") for test in tests]
    program = "\n".join(tests)
    _check_tests(_tree(program), row)
    if "text" in row:
        text = (
            f"You are an expert Python programmer, and here is your task: {_code(row, 'text').strip()} "
            f"Your code should pass these tests:\n\n{program}"
        )
    else:
        text = _code(row, "prompt").rstrip("\n")
    used = {node.id for node in ast.walk(_tree(program)) if isinstance(node, ast.Name)}
    defined = [node for node in _tree(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    named = [node for node in defined if node.name in used]
    functions = [node.name for node in named if isinstance(node, ast.FunctionDef)]
    classes = [node.name for node in named if isinstance(node, ast.ClassDef)]
    return Question(
        index=index, db_id=source, database="", text=text, gold=code.strip("\n"), difficulty=source,
        question_id=row.get("task_id", row.get("question_id")), tests=tuple(tests), setup=setup,
        entry_point=_code(row, "entry_point", "") or next(iter(functions + classes), ""),
        classes=tuple(classes),
    )  # fmt: skip


def _check_tests(tests: ast.Module, row: dict):
    """Raises ValueError where the tests ask nothing, or define a `check` that nobody could call."""
    nodes = list(ast.walk(tests))
    names = [node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in nodes]
    asks = any(isinstance(node, ast.Assert | ast.Raise) for node in nodes)
    # no statement at all: they cannot be parsed, and the verifier says why
    if tests.body and not asks and not any("assert" in name for name in names):
        raise ValueError("tests have no assert, so that every program that runs would be right")
    defined = [node.name for node in tests.body if isinstance(node, ast.FunctionDef)]
    if "check" in defined and "check" not in names and not row.get("entry_point"):
        raise ValueError("tests define check, but 'entry_point', which it is called with, is missing")


def mbpp(index: int, row: dict) -> Question:
    """Its few setups build objects of the answer's own classes: they are tests, and the prompt shows them."""
    setup = [row["test_setup_code"]] if row["test_setup_code"].strip() else []
    plain = {name: row[name] for name in ("text", "code", "task_id")}
    return question(index, plain | {"tests": [*setup, *row["test_list"]]}, "mbpp")


def humaneval(index: int, row: dict) -> Question:
    """The prompt is the beginning of the program. Its tests use its imports and helpers: it is the setup."""
    plain = {name: row[name] for name in ("prompt", "entry_point", "task_id")}
    return question(
        index,
        plain | {"code": row["canonical_solution"], "tests": row["test"], "setup": row["prompt"]},
        "humaneval",
    )


def of_split(name: str, questions: list[Question], split: str) -> list[Question]:
    """MBPP's by their numbers: 511 to 974 for training, 11 to 510 held out (1 to 10 are for few-shot use).

    HumanEval's 164 are all held out: `data.load` has refused its training split.
    """
    if name != "mbpp":
        return questions
    first, last = (511, 974) if split == "train" else (11, 510)
    return [q for q in questions if first <= int(q.question_id) <= last]


# --- from a prompt and an answer to a program ---------------------------------------------------------------


def begins_program(prompt: str) -> bool:
    """Whether a prompt is the beginning of a program, as HumanEval's are, and not a task in words."""
    return bool(_tree(prompt).body)


def program(prompt: str, code: str) -> str:
    """What is run. Code that begins indented is the rest of the function at the end of the prompt."""
    continues = code.lstrip("\n")[:1] in ("\t", " ") and begins_program(prompt)
    return f"{prompt}\n{code}" if continues else code


# The line of a fence: its indentation, and the language behind an opening one.
FENCE = re.compile(r"^(?P<indent>[ \t]*)```+[ \t]*(?P<language>[^\s`]*)[^\n]*(?:\n|\Z)", re.MULTILINE)
CLOSE = re.compile(r"^[ \t]*```+[^\n]*", re.MULTILINE)
PYTHON = ("", "python", "python3", "py")
# Lines that are code wherever they stand, and those that are code where an answer begins with them.
DEFINITION = r"(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(|class[ \t]+\w+[ \t]*[(:]|@\w"
IMPORT = (
    r"from[ \t]+[\w.]+[ \t]+import\b|import[ \t]+[\w.]+(?:[ \t]+as[ \t]+\w+)?[ \t]*(?:,[^\n]*|\#[^\n]*)?$"
)
ASSIGNMENT = r"[\w.]+(?:\[[^\]\n]*\])?(?:[ \t]*,[ \t]*[\w.]+)*(?:[ \t]*:[^=\n]+)?[ \t]*=(?!=)"
CODE = re.compile(rf"^(?:{DEFINITION}|{IMPORT})", re.MULTILINE)
FIRST = re.compile(rf"\s*^(?:{DEFINITION}|{IMPORT}|{ASSIGNMENT}|\#|(?:\t|  )[ \t]*[^\s`])", re.MULTILINE)
# What a program goes on with after its first definition; a comment decides nothing.
NEXT = re.compile(rf"{DEFINITION}|{IMPORT}|{ASSIGNMENT}|\#", re.MULTILINE)
DEFINES, COMMENT = re.compile(DEFINITION), re.compile(r"\#")
# What a line may hold that hides a line break, or is hidden: texts, comments, brackets.
TOKEN = re.compile(
    r"(?P<long>\"{3}|'{3})(?:(?!(?P=long))(?:\\.|[^\\]))*(?:(?P=long)|\Z)"
    r"|\"(?:\\.|[^\\\"\n])*\"?|'(?:\\.|[^\\'\n])*'?|\#[^\n]*|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|\\\n|(?P<line>\n(?=[^\s]))",
    re.DOTALL,
)


def cut(answer: str) -> tuple[str, bool]:
    """The program in an answer, and whether nothing that follows could change it.

    It is the first fence of Python; or it begins where the answer does, or at its first line that defines or
    imports. The rest of a function ends before the next line that is not indented. A program goes on after
    its first function or class with definitions, imports and assignments, and ends before anything else.
    Without any of these: all of it.
    """
    answer = re.sub(r"\A\n* (?=\S)", "", answer)  # one space stands between some prompts and their answers
    first, code = FIRST.match(answer), CODE.search(answer)
    start = 0 if first else code.start() if code else len(answer)
    fence = FENCE.search(answer)
    while fence and fence.start() < start:
        close = CLOSE.search(answer, fence.end())
        if fence["language"].lower() in PYTHON:
            block = answer[fence.end() : close.start() if close else len(answer)]
            return (textwrap.dedent(block) if fence["indent"] else block).strip("\n"), bool(close)
        fence = close and FENCE.search(answer, close.end())
    if start == len(answer):
        return answer.strip("\n"), False
    answer, depth = answer[start:].lstrip("\n"), 0
    rest = answer[:1].isspace()  # the rest of a function
    defined = rest or bool(DEFINES.match(answer))
    for token in TOKEN.finditer(answer):
        depth = max(0, depth + bool(token["open"]) - bool(token["close"]))
        place = token.end()
        ends = answer.startswith(("```", "[DONE]"), place)  # [DONE] is of MBPP's few-shot prompts
        if token["line"] and not depth and defined and not (COMMENT if rest else NEXT).match(answer, place):
            # Of a line that is not complete nobody knows what it will be.
            return answer[: token.start()].rstrip(), ends or "\n" in answer[place:]
        if token["line"] and ends:
            return answer[: token.start()].rstrip(), True
        defined = defined or bool(token["line"] and DEFINES.match(answer, place))
    return answer.rstrip(), False


def _code(row: dict, name: str, default: str | None = None) -> str:
    value: Any = row[name] if default is None else row.get(name) or default
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a text")
    return value.replace("\r\n", "\n")


def _tree(code: str) -> ast.Module:
    """Of code that is no program, or is only the rest of one, nothing is known."""
    try:
        return ast.parse(code)
    except SyntaxError:
        return ast.Module([], [])
