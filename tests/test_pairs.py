"""Which answers become chosen and rejected, and how K pairs are drawn from them."""

import copy
import json
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from data import Answer, Question, load
from pairs import QuestionPairs, is_degenerate, make_pairs
from prompts import code_ids, normal_form
from settings import Config
from stages import Run
from verify import NOT_JUDGED, Verdict

GOLD = (90, 91, 0)
CONFIG = Config(pairs=4, seed=0)


def answers(question, *verdicts, first=1):
    """Answer m has the ids (question, m, 0): all distinct."""
    return [
        (Answer(question, m, (100 + question, m, 0), "", -1.0, True), Verdict(verdict))
        for m, verdict in enumerate(verdicts, first)
    ]


def pairs_of(drawn, t=1, index=5, counts=None, gold_code="SELECT 1", context="", **settings):
    """D_t of one question whose gold code has the ids GOLD, None where it has no pairs; adds to `counts`."""
    question = Question(index, "pets", "pets.sqlite", "?", gold_code, context=context)
    given, verdicts = [replace(a, question=index) for a, _ in drawn], [v for _, v in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairs.code_ids", lambda code, tokenizer: GOLD)
        patch.setattr("pairs.answer_text", lambda ids, tokenizer: gold_code)
        found, counted = make_pairs(replace(CONFIG, **settings), None, [question], given, verdicts, t)
    if counts is not None:
        counts.update(counted)
    assert counted["pairs"] == sum(len(p.pairs) for p in found)
    return found[0] if found else None


def sides(pairs):
    """(chosen, rejected) token ids of every pair."""
    return [tuple(None if i is None else pairs.answers[i] for i in pair) for pair in pairs.pairs]


RIGHT = [(105, m, 0) for m in range(1, 7)]
DRAWN = answers(5, *["correct"] * 6, *["wrong"] * 3, *["error"] * 3)


def test_chosen_are_right_and_rejected_are_not():
    for t in range(50):
        for chosen, rejected in sides(pairs_of(DRAWN, t)):
            assert chosen in RIGHT and rejected not in RIGHT and rejected != GOLD


def test_k_pairs_without_replacement_where_the_sets_are_large_enough():
    for k in (1, 4, 6):
        for t in range(20):
            found = sides(pairs_of(DRAWN, t, pairs=k))
            assert len(found) == len({c for c, _ in found}) == len({r for _, r in found}) == k


def test_with_replacement_where_a_set_holds_fewer_than_k():
    found = sides(pairs_of(DRAWN, pairs=20))
    assert len(found) == 20 and {c for c, _ in found} <= set(RIGHT)
    few = sides(pairs_of(answers(5, "correct", "wrong", "wrong", "wrong", "wrong"), pairs=4))
    assert [c for c, _ in few] == [(105, 1, 0)] * 4  # the one right answer again and again …
    assert len({r for _, r in few}) == 4  # … against every wrong one once


def test_every_pair_of_answers_is_drawn_equally_often():
    drawn = answers(5, "correct", "correct", "wrong", "wrong", "wrong")
    found = Counter(pair for t in range(3000) for pair in sides(pairs_of(drawn, t, pairs=1)))
    assert len(found) == 6 and all(abs(n - 500) < 5 * 500**0.5 for n in found.values())


def test_an_answer_drawn_twice_counts_twice_and_is_stored_once():
    drawn = answers(5, "correct", "wrong", "wrong")
    drawn += [(replace(drawn[1][0], sample=9), drawn[1][1])] * 6  # the first wrong one, seven times in all
    found = [sides(pairs_of(drawn, t, pairs=1))[0][1] for t in range(400)]
    assert 300 < found.count((105, 2, 0)) < 395  # 7/8 of 400 is 350
    pairs = pairs_of(drawn, pairs=8)
    assert len(set(pairs.answers)) == len(pairs.answers) <= 3 and len(pairs.pairs) == 8


def test_no_wrong_answer_gives_no_pair():
    counts = Counter()
    assert pairs_of(answers(5, "correct", "correct"), counts=counts) is None
    assert counts["questions_without_wrong"] == 1 and counts["questions_without_right"] == 0


@pytest.mark.parametrize(
    "gold, chosen", [("if-empty", GOLD), ("always", GOLD), ("only", GOLD), ("never", None)]
)
def test_gold_where_no_answer_is_right(gold, chosen):
    counts = Counter()
    pairs = pairs_of(answers(5, "wrong", "error", "timeout", "wrong"), gold=gold, counts=counts)
    assert (pairs is None) if chosen is None else ({c for c, _ in sides(pairs)} == {GOLD})
    assert counts["questions_without_right"] == (chosen is None)
    assert counts["answers_right"] == 0 and counts["answers"] == 4 and counts["questions"] == 1


@pytest.mark.parametrize("gold, expected", [("if-empty", False), ("never", False), ("always", True)])
def test_gold_where_an_answer_is_right(gold, expected):
    found = {c for t in range(30) for c, _ in sides(pairs_of(DRAWN, t, gold=gold))}
    assert found == set(RIGHT) | ({GOLD} if expected else set())


def test_gold_only_is_chosen_alone():
    assert {c for t in range(10) for c, _ in sides(pairs_of(DRAWN, t, gold="only"))} == {GOLD}


def test_an_answer_that_was_not_judged_is_neither_chosen_nor_rejected():
    """Nor does the gold code make pairs with it, where no answer is right."""
    counts = Counter()
    unknown = Verdict("error", NOT_JUDGED + "shop.sqlite: database disk image is malformed")
    drawn = [(answer, unknown) for answer, _ in answers(5, *["error"] * 3)]
    for gold in ("if-empty", "always", "never"):
        assert pairs_of(drawn, gold=gold) is None
    drawn += answers(5, "wrong", "correct", first=7)
    found = {pair for t in range(50) for pair in sides(pairs_of(drawn, t, counts=counts, gold="always"))}
    assert {c for c, _ in found} == {GOLD, (105, 8, 0)} and {r for _, r in found} == {(105, 7, 0)}
    assert counts["answers_not_judged"] == 3 * 50 and counts["answers"] == 5 * 50


def test_without_a_dpo_term_no_wrong_answer_is_needed():
    pairs = pairs_of(answers(5, "correct", "correct"), objective="sft")
    assert {r for _, r in sides(pairs)} == {None} and len(pairs.pairs) == 4
    assert set(pairs.answers) <= {(105, 1, 0), (105, 2, 0)}


def test_degenerate_answers_are_never_rejected_but_may_be_chosen():
    loop = Answer(5, 9, (7,) * 40, "", -1.0, finished=False)
    counts = Counter()
    pairs = pairs_of(answers(5, "correct", "wrong") + [(loop, Verdict("error"))], counts=counts)
    assert {r for _, r in sides(pairs)} == {(105, 2, 0)} and counts["answers_degenerate"] == 1
    assert pairs_of([(loop, Verdict("error"))]) is None  # gold, and nothing to compare it with
    assert {c for c, _ in sides(pairs_of([(loop, Verdict("correct"))] + answers(5, "wrong")))} == {loop.ids}


@pytest.mark.parametrize(
    "ids, finished, expected",
    [
        ((7,) * 40, False, True),
        ((7,) * 40, True, False),  # it ended
        ((1, 2, 3, 4, 5, 6) + (8, 9) * 6, False, True),  # the last half is (8, 9) back to back
        ((8, 9) * 6 + (1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 7), False, False),  # repeats, but not to the end
        (tuple(range(12)) + (1, 2, 3, 4) * 3, False, True),  # three times is enough
        (tuple(range(12)) + (1, 2, 3, 4, 5, 6) * 2, False, False),  # twice is not
        (tuple(range(13)) + (1, 2, 3, 4) * 3 + (1,), False, True),  # cut off inside the n-gram
        (tuple(range(24)), False, False),
        ((3,), False, False),
        ((3, 3, 3), False, False),  # the last half, two tokens, holds no three repeats
        ((), False, False),
    ],
)
def test_degenerate_means_a_last_half_of_one_n_gram_at_least_three_times(ids, finished, expected):
    assert is_degenerate(Answer(0, 0, ids, "", -1.0, finished)) == expected


# ---- the same code with two verdicts ----


def answer(ids, verdict, text="", finished=True):
    return Answer(5, 0, ids, text, -1.0, finished), Verdict(verdict)


@pytest.mark.parametrize("gold", ["if-empty", "always", "only"])
def test_the_gold_code_is_never_preferred_to_itself(gold):
    """It was drawn as well, and too slow as an answer: its time limit is longer as the gold code."""
    counts, drawn = Counter(), [answer(GOLD, "timeout", "SELECT 1")] * 3
    assert pairs_of(drawn, gold=gold, counts=counts) is None
    assert counts["answers_wrong_but_chosen"] == 3 and counts["questions_without_wrong"] == 1
    for t in range(20):
        found = sides(pairs_of(drawn + answers(5, "wrong", "error"), t, gold=gold))
        assert {c for c, _ in found} == {GOLD} and {r for _, r in found} <= {(105, 1, 0), (105, 2, 0)}


@pytest.mark.parametrize("other", ["timeout", "wrong", "error", "crash", "denied"])
def test_an_answer_that_was_right_once_is_never_rejected(other):
    counts, twice = Counter(), [answer((7, 8, 0), "correct"), answer((7, 8, 0), other)]
    for drawn in (twice, twice[::-1]):
        assert pairs_of(drawn) is None
        drawn = drawn + answers(5, "wrong")
        found = [pair for t in range(20) for pair in sides(pairs_of(drawn, t, counts=counts))]
        assert set(found) == {((7, 8, 0), (105, 1, 0))}
    assert counts["answers_wrong_but_chosen"] == 40


@pytest.mark.parametrize(
    "text", ["SELECT 1", "SELECT 1;", "```sql\nSELECT 1\n```", "Here it is:\nSELECT 1; That is all."]
)
def test_the_same_code_in_other_tokens_is_never_rejected(text):
    counts = Counter()
    drawn = [answer((7, 0), "timeout", text), answer((8,), "timeout", text, finished=False)]
    assert pairs_of(drawn, gold_code="SELECT 1;", counts=counts) is None
    assert counts["answers_wrong_but_chosen"] == 2
    drawn += [answer((9, 0), "correct", "SELECT 1"), answer((6, 0), "wrong", "SELECT 2")]
    found = [pair for t in range(20) for pair in sides(pairs_of(drawn, t))]
    assert set(found) == {((9, 0), (6, 0))}


def test_python_code_is_compared_as_it_is_taken_from_the_answer():
    drawn = [answer((7, 0), "timeout", "<code>\nresult = 1\n</code>"), answer((6, 0), "wrong", "result = 10")]
    found = sides(pairs_of(drawn, gold_code="\nresult = 1\n", context="test"))
    assert set(found) == {(GOLD, (6, 0))}


WRITTEN = "SELECT name, 'It''s  B' FROM \"my T\" WHERE a.b >= 1.5 AND x = x'00' -- all\n ORDER BY é"
SAME = [
    WRITTEN,
    f"{WRITTEN} ;",
    f"{WRITTEN};; -- end",
    WRITTEN.replace("SELECT", "select").replace("FROM", "From").replace("name", "NAME"),
    "\n\tSELECT  name,\n'It''s  B'FROM\f\"my T\"\r\nWHERE a.b >=  1.5\nAND x = x'00'\nORDER  BY\té \n",
    WRITTEN.replace("-- all\n", "/* it's\n all; */"),
    WRITTEN.replace(" >= ", ">=").replace(", ", " ,").replace(" = ", "="),
    WRITTEN.replace("a.b", "a . /**/ b").replace("-- all", ""),
    WRITTEN + " /* open",
]
OTHER = [
    WRITTEN.replace("It''s  B", "It''s B"),
    WRITTEN.replace("It''s  B", "it''s  b"),
    WRITTEN.replace("''", ""),
    WRITTEN.replace("my T", "my t"),
    WRITTEN.replace('"my T"', "[my T]"),
    WRITTEN.replace(">=", "> ="),  # a syntax error
    WRITTEN.replace("1.5", "1 .5"),
    WRITTEN.replace("x'00'", "x '00'"),
    WRITTEN.replace("é", "É"),  # another name: SQLite ignores the case of ASCII alone
    WRITTEN.replace("-- all\n", "-- all "),
    WRITTEN.replace(" ORDER", "; ORDER"),
    WRITTEN.replace("WHERE a", "WHEREa"),
]


@pytest.mark.parametrize("text", SAME)
def test_the_same_query_written_otherwise_is_the_same_code(text):
    assert normal_form(text, "sql") == normal_form(WRITTEN, "sql")
    counts = Counter()
    drawn = [answer((7, 0), "timeout", f"```sql\n{text}\n```"), answer((6, 0), "correct", WRITTEN)]
    assert pairs_of(drawn, counts=counts) is None and counts["answers_wrong_but_chosen"] == 1


@pytest.mark.parametrize("text", OTHER)
def test_another_query_is_other_code(text):
    assert text != WRITTEN and normal_form(text, "sql") != normal_form(WRITTEN, "sql")


@pytest.mark.parametrize("one, other", [
    ("1e+5", "1e +5"), ("a || b", "a | | b"), ("a <> b", "a < > b"), ("1.5e3", "1.5 e3"), ("a->>b", "a-> >b"),
    ("a - -b", "a --b"), ("'a' 'b'", "'a''b'"), ("\u212a", "k"),
])  # fmt: skip
def test_a_blank_inside_a_token_makes_other_code(one, other):
    assert normal_form(one, "sql") != normal_form(other, "sql")


@pytest.mark.parametrize(
    "one, other", [("> -1", ">-1"), ("(a)=(b)", "( a ) = ( b )"), ("1E5", "1e5"), ("X'AB'", "x'ab'")]
)
def test_a_blank_between_tokens_makes_no_other_code(one, other):
    assert normal_form(one, "sql") == normal_form(other, "sql")


def test_code_of_comments_alone_is_no_code():
    """Then answers are the same where their tokens are."""
    drawn = [
        answer((7, 0), "wrong", "-- one"),
        answer((8, 0), "wrong", "/* two */;"),
        answer((6, 0), "correct", "SELECT 1"),
    ]
    assert {normal_form(a.text, "sql") for a, _ in drawn[:2]} == {""}
    assert set(sides(pairs_of(drawn))) == {((6, 0), (7, 0)), ((6, 0), (8, 0))}


PROGRAM = "if x:\n    y = 1"


@pytest.mark.parametrize(
    "text", [PROGRAM, "if x:  \n    y = 1\t\n\n", "if x:\r\n    y = 1\r\n", f"\n \n{PROGRAM}"]
)
def test_blanks_at_the_end_of_a_line_make_no_other_python_code(text):
    assert normal_form(text, "python") == PROGRAM


OTHER_PROGRAMS = [
    "if x:\n     y = 1", f"    {PROGRAM}", "if X:\n    y = 1", f"{PROGRAM} # one", f"{PROGRAM}\u00a0",
    "if x: y = 1", f"{PROGRAM};",
]  # fmt: skip


@pytest.mark.parametrize("text", OTHER_PROGRAMS)
def test_what_else_differs_makes_other_python_code(text):
    assert normal_form(text, "python") != PROGRAM


def test_a_blank_behind_a_backslash_makes_other_python_code():
    # the latter does not run
    assert normal_form("x = 1 + \\\n2", "python") != normal_form("x = 1 + \\ \n2", "python")


def test_gold_code_that_is_not_chosen_moves_no_draw():
    drawn = [answer(GOLD, "timeout", "SELECT 1"), *DRAWN]
    for gold in ("if-empty", "never"):
        counts = Counter()
        assert GOLD in {r for t in range(20) for _, r in sides(pairs_of(drawn, t, gold=gold, counts=counts))}
        assert "answers_wrong_but_chosen" not in counts  # no count of 0 in the file


def test_draws_without_such_answers_are_those_that_they_were():
    """Recorded at commit 676e7b2, which did not look for the same code with two verdicts."""
    found = [(c[1], r[1]) for c, r in sides(pairs_of(DRAWN))]
    assert found == [(4, 7), (6, 9), (5, 11), (3, 8)]


def test_a_draw_depends_on_seed_iteration_and_question_alone():
    first = pairs_of(DRAWN, t=1)
    assert first == pairs_of(DRAWN, t=1)
    assert (
        len({pairs_of(DRAWN, t=1), pairs_of(DRAWN, t=2), pairs_of(DRAWN, seed=1), pairs_of(DRAWN, index=6)})
        == 4
    )


# ---- the stage ---------------------------------------------------------------------------------------------


@pytest.fixture
def stage(spider, tokenizer, tmp_path):
    questions = load("spider", spider, "train")[0][:4]

    def run(verdicts, name="run", t=1, config=CONFIG):
        """D_t and its folder. verdicts: {question: its answers' verdicts}."""
        flat = [pair for q, of in verdicts.items() for pair in answers(q, *of)]
        use = [q for q in questions if q.index in verdicts]
        make = partial(make_pairs, config, tokenizer, use, [a for a, _ in flat], [v for _, v in flat], t)
        return Run(tmp_path / name).pairs(t, make), tmp_path / name / f"iter_{t}"

    return run


VERDICTS = {
    0: ["correct", "wrong", "wrong"],
    1: ["wrong", "error"],
    2: ["correct"] * 3,
    3: ["error", "correct"],
}


def test_the_stage_writes_pairs_and_a_summary_that_adds_up(stage):
    pairs, folder = stage(VERDICTS)
    assert [p.question for p in pairs] == [0, 1, 3]  # question 2 has nothing wrong
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert [
        QuestionPairs(r["question"], tuple(map(tuple, r["answers"])), tuple(map(tuple, r["pairs"])))
        for r in rows
    ] == pairs
    summary = json.loads((folder / "pairs_summary.json").read_text())
    assert Counter(summary) == Counter(
        questions=4, answers=10, answers_right=5, questions_given_gold=1, questions_without_wrong=1, pairs=12
    )


def test_the_same_call_writes_the_same_bytes(stage):
    (first, one), (second, two) = stage(VERDICTS, "one"), stage(VERDICTS, "two")
    assert first == second and (one / "pairs.jsonl").read_bytes() == (two / "pairs.jsonl").read_bytes()
    again, _ = stage({0: ["wrong"], 1: ["wrong"]}, "one")  # the stage is done: its file counts, not its input
    assert again == first


def test_other_questions_do_not_move_a_questions_pairs(stage):
    whole, _ = stage(VERDICTS, "whole")
    alone, _ = stage({3: VERDICTS[3]}, "alone")
    assert alone == [p for p in whole if p.question == 3]
    changed, _ = stage(VERDICTS | {0: ["wrong"] * 3}, "changed")
    assert changed[1:] == whole[1:] and changed[0] != whole[0]


def test_the_gold_answer_is_its_tokens_and_the_end_token(spider, tokenizer):
    question = load("spider", spider, "train")[0][0]
    ids = code_ids(question.gold, tokenizer)
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1]) == question.gold


def test_what_the_golds_tokens_say_counts_where_a_tokenizer_changes_it(tokenizer):
    """NFC makes one letter of two: the gold's tokens say another query, which was drawn and is wrong."""
    from tokenizers import normalizers

    made = copy.deepcopy(tokenizer)
    made.backend_tokenizer.normalizer = normalizers.NFC()
    question = Question(5, "pets", "pets.sqlite", "?", "SELECT 'e\u0301'")
    drawn = [Answer(5, m, (m, 0), text, -1.0, True) for m, text in enumerate(("SELECT '\u00e9'", "SELECT 2"))]
    found, counts = make_pairs(CONFIG, made, [question], drawn, [Verdict("wrong")] * 2, 1)
    assert set(sides(found[0])) == {(code_ids(question.gold, made), (1, 0))}
    assert counts["answers_wrong_but_chosen"] == 1
