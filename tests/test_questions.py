"""Which questions a run uses: who is left out, counted and named."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest

import data
import prompts
from cli import UserError
from questions import Splits, choose, fitting
from settings import Config
from verify import GoldError, SqlJob, Verifier


def test_no_training_question_left_is_one_sentence_and_no_file(spider, tmp_path):
    train, dev = (data.load("spider", spider, split)[0] for split in ("train", "dev"))
    splits = Splits([replace(q, gold="SELECT x FROM nowhere") for q in train], train[:1], dev)
    policy = SimpleNamespace(max_positions=512)
    with (
        Verifier(1) as verifier,
        pytest.raises(
            UserError, match="no training question is left.*question 11, counted from 0 .*no such table"
        ),
    ):
        choose(Config(data="spider"), policy, splits, [], tmp_path, verifier)
    assert not list(tmp_path.iterdir())


class NoGold(Verifier):
    """A verifier that must not run a gold query of the questions in `forbidden`."""

    forbidden = ()

    def _gold(self, database, gold, timeout):
        assert gold not in self.forbidden
        return super()._gold(database, gold, timeout)


@pytest.mark.parametrize("flags, kept, counts", [
    ({}, [[0, 3], [5], [0, 1]], ["train: 2 questions", "validation: 1 questions"]),
    ({"keep_empty": True}, [[0, 1, 2, 3], [4, 5], [0, 1]], []),
    ({"criterion": "executable", "gold": "never"}, [[0, 1, 2, 3], [4, 5], [0, 1]], []),
])  # fmt: skip
def test_questions_whose_gold_gives_no_rows_are_counted_and_not_trained_on(
    spider, tokenizer, flags, kept, counts
):
    train, dev = (data.load("spider", spider, split)[0] for split in ("train", "dev"))
    empty = {
        1: "SELECT name FROM owner WHERE id > 9",
        2: "SELECT * FROM pet WHERE 0",
        4: "SELECT id FROM owner LIMIT 0",
    }
    train = [replace(q, gold=empty.get(q.index, q.gold)) for q in train]
    splits = Splits(train[:4], train[4:6], [replace(dev[0], gold="SELECT 1 WHERE 0"), dev[1]])
    policy = SimpleNamespace(
        max_positions=4096, tokenizer=tokenizer, prompt_ids=lambda q: prompts.prompt_ids(q, tokenizer)
    )
    with NoGold(1) as verifier:
        if "criterion" in flags:
            verifier.forbidden = {q.gold for q in train[:4]}
        found = fitting(Config(data="spider", **flags), policy, splits, [], verifier)
    assert found["kept"] == kept
    assert [note.split(":")[0] + ":" + note.split(":")[1] for note in found["left out"]] == counts
    assert all("--keep-empty" in note for note in found["left out"])


def test_an_empty_result_is_one_by_the_official_preparation_or_holds_nothing_but_null(spider):
    database = data.load("spider", spider, "train")[0][0].database
    golds = {
        "SELECT name FROM owner WHERE id > = 9": True, "SELECT count(*) FROM owner WHERE id > 9": False,
        "SELECT NULL": True, "SELECT max(id), min(name) FROM owner WHERE id > 9": True,
        "SELECT NULL FROM owner": True, "SELECT max(id), count(*) FROM owner WHERE id > 9": False,
        "SELECT ''": False, "SELECT 0": False, "SELECT NULL UNION ALL SELECT id FROM owner": False,
    }  # fmt: skip
    with Verifier(1) as verifier:
        assert {gold: verifier.gold_is_empty(SqlJob(database, gold, "")) for gold in golds} == golds
        with pytest.raises(GoldError):
            verifier.gold_is_empty(SqlJob(database, "SELECT x FROM nowhere", ""))


@pytest.mark.parametrize("gold, left", [("if-empty", [0, 2]), ("never", [0, 1, 2])])
def test_gold_that_the_tokenizer_changes_is_left_out_by_name_where_it_could_be_learned(
    spider, tokenizer, gold, left
):
    from tokenizers import normalizers

    made = copy.deepcopy(tokenizer)
    made.backend_tokenizer.normalizer = normalizers.NFC()
    train, dev = (data.load("spider", spider, split)[0] for split in ("train", "dev"))
    other, comment = "SELECT 'e\u0301'", "SELECT 1 -- e\u0301"  # in a comment it changes nothing
    train = [
        train[0],
        replace(train[1], gold=other),
        replace(train[2], gold=comment),
        replace(train[3], gold=other),
    ]
    splits = Splits(train[:3], train[3:], [replace(dev[0], gold=other)])
    policy = SimpleNamespace(
        max_positions=4096, tokenizer=made, prompt_ids=lambda q: prompts.prompt_ids(q, made)
    )
    with Verifier(1) as verifier:
        found = fitting(Config(data="spider", gold=gold), policy, splits, [], verifier)
    assert found["kept"] == [left, [3], [0]]
    notes = ["train: question 1, counted from 0 (pets): its gold code is not what its tokens say"]
    assert found["left out"] == (notes if gold == "if-empty" else [])
