"""Files of anybody's predictions, in three forms, as answers to a data set's questions."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from cli import UserError
from data import Question

BIRD_MARK = "\t----- bird -----\t"  # stands between the SQL and its database's name in BIRD's own files
LAST_WORDS = {"asc", "desc", "null", "end"}  # a query may end with one of these; no database is called so


def read_predictions(path: Path, questions: list[Question], total: int) -> dict[int, str]:
    """Question.index → code, from a file in one of three forms; the official file has `total` questions.

    1. One SQL a line, as many and in the order of the official file. An empty line is an empty answer; empty
       lines at the end that are too many are dropped.
    2. BIRD's predict_dev.json: one JSON object whose keys are positions in the official file.
    3. JSON lines: an answer, and a question's index or id.

    In all of them a TAB and the name of the question's database may follow the SQL. Raises UserError,
    naming the line, for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read predictions {path}: {error}.")
    if not text.strip():
        raise UserError(f"{path} is empty.")
    lines = text.removesuffix("\n").split("\n")  # not splitlines: JSON may hold U+2028 and its like
    if re.match(r"\s*\[\s*\{", text):
        raise UserError(f"{path} is a list: predictions in JSON stand one object a line, without brackets.")
    if not text.lstrip().startswith("{"):
        return answers_of_lines(lines, path, questions, total)
    pairs = bird_pairs(text)
    if pairs is not None:
        found = answers_of_bird_pairs(pairs, path, questions, total)
    else:
        found = answers_of_json_lines(lines, path, questions, total)
    if found.keys().isdisjoint(q.index for q in questions):
        raise UserError(f"{path}: no line answers a question of this split.")
    return found


def answers_of_lines(lines: list[str], path: Path, questions: list[Question], total: int) -> dict[int, str]:
    while len(lines) > total and not lines[-1].strip():
        lines.pop()
    if len(lines) != total:
        counts = f"{len(lines)} lines; the split has {total} questions"
        raise UserError(f"{path} has {counts}, and each needs one.")
    known, found = {q.db_id for q in questions}, {}
    for q in questions:
        found[q.index] = without_database(lines[q.index], q, known, f"{path}, line {q.index + 1}")
    return found


def without_database(text: str, question: Question, known: set[str], place: str) -> str:
    """The SQL of `text`, without the TAB and the name of the question's database that may follow it.

    Raises UserError where another name follows. Any single word after the last TAB counts as a name, even if
    no database is called so: the official evaluators cut the line there as well. Read as SQL it would be an
    alias of the last table, and a query for another database would be judged on this one without a complaint.
    known: databases' names; by it those are recognised that are not single words.
    """
    if question.language == "python":
        return text
    sql, mark, name = text.rpartition(BIRD_MARK)
    if not mark:
        sql, mark, name = text.rstrip().rpartition("\t")
    name = name.strip()
    if mark and name == question.db_id:
        return sql
    is_word = name.isidentifier() and name.lower() not in LAST_WORDS
    if mark and (is_word or name in known or mark == BIRD_MARK):
        raise UserError(
            f"{place}: after the TAB stands {name}, but question {question.index} is on {question.db_id}"
            " (if it is part of the SQL, put a space in place of the TAB)."
        )
    return text


def bird_pairs(text: str) -> list[tuple[str, object]] | None:
    """The keys and values of a file that is one JSON object with numbers as keys; None for any other file."""
    try:
        pairs = json.loads(text, object_pairs_hook=list)  # a dictionary would hide a key that stands twice
    except (ValueError, RecursionError):
        return None
    return pairs if any(key.isdecimal() for key, _ in pairs) else None


def answers_of_bird_pairs(pairs, path: Path, questions: list[Question], total: int) -> dict[int, str]:
    positions, by_index = {str(i): i for i in range(total)}, {q.index: q for q in questions}
    known, found = {q.db_id for q in questions}, {}
    for key, code in pairs:
        index, place = positions.get(key), f"{path}, key {key!r}"
        if index is None:
            raise UserError(f"{place}: a key must be a position among the official file's {total} questions.")
        if index in found:
            raise UserError(f"{place}: question {index} has an answer already.")
        try:
            code.encode()
        except (AttributeError, UnicodeEncodeError):
            raise UserError(f"{place}: the answer must be a string, without half characters.")
        found[index] = without_database(code, by_index[index], known, place) if index in by_index else code
    return found


def answers_of_json_lines(lines: list[str], path: Path, questions: list[Question], total: int) -> dict:
    """A line with an id that no question has is passed over: its question was left out.

    An id that none of the questions could have is refused: a word where ids are numbers, a number where they
    are words, any id where questions have none.

    BIRD's mini_dev has two questions twice, both times with the same id. The first line with such an id
    answers all questions that have the id; the second line answers all but the first of them, and so on. So
    one line is enough, and as many lines as questions are taken in order.
    """
    by_index, known = {q.index: q for q in questions}, {q.db_id for q in questions}
    by_id: dict[str, list[Question]] = {}
    for q in questions:
        if q.question_id is not None:
            by_id.setdefault(str(q.question_id), []).append(q)
    kinds = {is_number(own) for own in by_id}
    found, seen = {}, Counter()  # seen: id → how many lines have named it
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        code, index, own, database = read_answer(line, place, total)
        named, earlier = by_id.get(own, []), 0
        if index is not None:
            indices = [index]
            has_id = index in by_index and by_index[index].question_id is not None
            if own is not None and (named or has_id) and index not in [q.index for q in named]:
                raise UserError(f"{place}: index {index} and id {own} are two different questions.")
        else:
            if is_number(own) not in kinds:
                words = f"no question of this split could have the id {own}"
                raise UserError(f"{place}: {words}: give its index.")
            if len({(q.db_id, q.text, q.gold) for q in named}) > 1:
                numbers = " and ".join(str(q.index) for q in named)
                words = f"questions {numbers} differ, but share the id {own}"
                raise UserError(f"{place}: {words}: give their index.")
            earlier = seen[own]
            seen[own] += 1
            indices = [q.index for q in named[earlier:]]
            if named and not indices:
                raise UserError(f"{place}: question {named[-1].index} has an answer already.")
        for i in indices:
            if i in found and not earlier:
                raise UserError(f"{place}: question {i} has an answer already.")
            if i in by_index and database not in (None, by_index[i].db_id):
                raise UserError(f"{place}: database {database}, but question {i} is on {by_index[i].db_id}.")
            found[i] = without_database(code, by_index[i], known, place) if i in by_index else code
    return found


def read_answer(line: str, place: str, total: int) -> tuple[str, int | None, str | None, object]:
    """(code, index, id, database) of a JSON line, which has an index, an id, or both; else raises UserError.

    The id is text, so that "7" is 7.
    """
    try:
        row = json.loads(line, object_pairs_hook=without_repeats)
        code, index = row["answer"], row.get("index")
        names = ("question_id", "problem_id", "task_id")  # DS-1000's name for it; MBPP's and HumanEval's
        ids = [row[name] for name in names if row.get(name) is not None]
        if index is None and not ids:
            raise KeyError("index or question_id")
        str(code).encode()  # JSON can spell half a character
    except KeyError as error:
        raise UserError(f"{place}: {error.args[0]} is missing.")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{place}: expected a JSON object with answer and index or question_id ({error!r}).")
    if not isinstance(code, str) or not isinstance(index, int | None) or isinstance(index, bool):
        raise UserError(f"{place}: answer must be a string and index a number.")
    valid = all(isinstance(own, int | str) and not isinstance(own, bool) for own in ids)
    if not valid or len({str(own) for own in ids}) > 1:
        given = " and ".join(map(repr, ids))
        raise UserError(f"{place}: question_id must be a whole number or a string, not {given}.")
    if index is not None and not 0 <= index < total:
        raise UserError(f"{place}: index {index}, but the split has {total} questions.")
    return code, index, str(ids[0]) if ids else None, row.get("db_id")


def is_number(own: str) -> bool:
    """Whether an id is written as a whole number is."""
    return re.fullmatch("0|-?[1-9][0-9]*", own) is not None


def without_repeats(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object; raises ValueError where a key stands in it twice, with two values perhaps."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
