"""Tasks with asserts: rows → questions, prompts, answers → programs, and their scores."""

import gzip
import json

import pytest
from test_prompts import CHAT
from test_verify_asserts import strict, without_packages

import codelutra
import data
import eval as evaluation
import prompts
import tasks
from cli import UserError
from judging import job
from verify import Verifier

PAIR = "class Pair:\n    def __init__(self, a): self.a = a\n"
MBPP = [
    {
        "task_id": n,
        "text": f"Write a function to add {n}.",
        "code": f"def add(x):\r\n    return x + {n}",
        "test_setup_code": "",
        "test_list": [f"assert add({i}) == {i + n}" for i in range(3)],
        "challenge_test_list": [],
    }
    for n in (1, 10, 11, 510, 511, 600, 601, 974)
]
MBPP[3] |= {
    "code": PAIR + "def total(p): return p.a",
    "test_setup_code": "p = Pair(3)\r\n",
    "test_list": ["assert total(p) == 3"],
}
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "entry_point": "inc",
        "prompt": 'import math\n\n\ndef two():\n    return 2\n\n\ndef inc(x):\n    """Add one."""\n',
        "canonical_solution": "    return x + 1\n",
        "test": "\n\ndef check(candidate):\n    assert candidate(two()) == math.floor(3.5)\n",
    },
    {
        "task_id": "HumanEval/1",
        "entry_point": "neg",
        "prompt": '\n\ndef neg(x):\n    """Negate."""\n',
        "canonical_solution": "    return -x\n",
        "test": "def check(candidate):\n    assert candidate(1) == -neg(-1)\n    assert neg(3) == -3\n",
    },
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    mbpp, humaneval = tmp_path_factory.mktemp("mbpp"), tmp_path_factory.mktemp("humaneval")
    (mbpp / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    with gzip.open(humaneval / "HumanEval.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in HUMANEVAL))
    return {"mbpp": mbpp, "humaneval": humaneval}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return without_packages(tmp_path_factory.mktemp("bin"))


def questions(sets, name, split="dev"):
    return data.load(name, sets[name], split)[0]


def test_the_splits(sets):
    numbers = {split: [q.question_id for q in questions(sets, "mbpp", split)] for split in ("train", "dev")}
    assert numbers == {"train": [511, 600, 601, 974], "dev": [11, 510]}
    assert [q.question_id for q in questions(sets, "humaneval")] == ["HumanEval/0", "HumanEval/1"]
    with pytest.raises(UserError, match="no questions for training: it is scored only"):
        questions(sets, "humaneval", "train")


def test_codelutra_refuses_a_set_that_has_no_training_questions(sets, tmp_path, capsys):
    import cli

    argv = [
        "--data",
        "humaneval",
        "--data-dir",
        str(sets["humaneval"]),
        "--model",
        "none",
        "--out",
        str(tmp_path / "r"),
    ]
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: codelutra.main(argv))
    assert ended.value.code == 2 and "scored only, by eval.py" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_row_of_mbpp(sets):
    plain, with_class = questions(sets, "mbpp")
    assert plain.text == (
        "You are an expert Python programmer, and here is your task: Write a function to add 11. "
        "Your code should pass these tests:\n\nassert add(0) == 11\nassert add(1) == 12\nassert add(2) == 13"
    )
    assert plain.gold == "def add(x):\n    return x + 11" and plain.index == 2
    assert (plain.entry_point, plain.classes, plain.language, plain.form) == ("add", (), "python", "program")
    assert (with_class.entry_point, with_class.classes) == ("total", ("Pair",))
    assert with_class.tests == ("p = Pair(3)\n", "assert total(p) == 3") and with_class.setup == ""


ROW = {"text": " Add one. ", "code": "def f(x): return x + 1\n", "tests": ["assert f(1) == 2"]}


def test_a_row_of_anybodys():
    q = tasks.question(4, ROW | {"task_id": "a", "setup": "import math"}, "mine")
    assert (q.index, q.question_id, q.db_id, q.difficulty, q.setup) == (4, "a", "mine", "mine", "import math")
    assert "here is your task: Add one. Your code" in q.text and q.tests == ("assert f(1) == 2",)
    row = {
        "prompt": "def f(x):\n",
        "code": "    return x + 1",
        "tests": "def check(c): assert c(1) == 2",
        "entry_point": "f",
    }
    q = tasks.question(0, row)
    assert (q.text, q.gold, q.entry_point, q.tests) == ("def f(x):", "    return x + 1", "f", (row["tests"],))


@pytest.mark.parametrize("change", [
    {"text": None}, {"text": 3}, {"prompt": "both"}, {"code": None},
    {"tests": []}, {"tests": [""]}, {"tests": ["a", 1]},
    {"tests": 1}, {"setup": 1}, {"entry_point": ["f"]}], ids=str)  # fmt: skip
def test_a_row_that_is_none(change):
    row = {k: v for k, v in (ROW | change).items() if v is not None}
    with pytest.raises((ValueError, TypeError, KeyError)):
        tasks.question(0, row)


def test_a_file_that_is_not_in_the_layout_is_refused_by_its_row(tmp_path):
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(MBPP[0]) + "\n" + json.dumps({"task_id": 2}) + "\n")
    with pytest.raises(UserError, match="mbpp.jsonl, line 2: 'test_setup_code' is missing"):
        data.load("mbpp", tmp_path, "dev")
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(MBPP[2] | {"code": "\ud800"}) + "\n")
    with pytest.raises(UserError, match="mbpp.jsonl, line 1: .*surrogates not allowed"):
        data.load("mbpp", tmp_path, "dev")


def test_the_prompts(sets, tokenizer):
    mbpp, human = questions(sets, "mbpp")[0], questions(sets, "humaneval")[0]
    plain, chat = (
        tokenizer,
        type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token),
    )
    chat.chat_template = CHAT
    assert plain.decode(prompts.prompt_ids(mbpp, plain)) == mbpp.text + "\n[BEGIN]\n"
    assert plain.decode(prompts.prompt_ids(human, plain)) == HUMANEVAL[0]["prompt"]
    assert f"Reply with Python code only.\n\n{mbpp.text}<" in chat.decode(prompts.prompt_ids(mbpp, chat))
    said = f"Complete the function. Reply with Python code only.\n\n{human.text}<"
    assert said in chat.decode(prompts.prompt_ids(human, chat))


F = "def f(x):\n    return x + 1"
ANSWERS = {  # what a model writes: (the program in it, whether it has ended)
    F: (F, False),
    "\n\n" + F: (F, False),
    " " + F: (F, False),
    F + "\n\n\n": (F, False),
    F + "\n\nassert f(1) == 2\n": (F, True),
    F + "\n\nassert f(1)": (F, False),
    F + "\n\nprint(f(1))\n\ndef g(): pass\n": (F, True),
    F + "\n\nif __name__ == '__main__':\n    f(1)\n": (F, True),
    F + "\n\nThis adds one.\n": (F, True),
    F + "\n[DONE]": (F, True),
    F + "\n```\nThis adds one.": (F, True),
    F + "\n\ndef g():\n    return f(2)\n\nX = [\n1]\nf.y = 1\nimport os\nEnd.\n": (
        F + "\n\ndef g():\n    return f(2)\n\nX = [\n1]\nf.y = 1\nimport os",
        True,
    ),
    "import math\nfrom a import (\nb)\n\n@cache\n" + F + "\nclass A:\n    pass\n": (
        "import math\nfrom a import (\nb)\n\n@cache\n" + F + "\nclass A:\n    pass",
        False,
    ),
    "f = lambda x: x + 1\n[DONE]\n": ("f = lambda x: x + 1", True),
    "# adds\nN = 1\nfor i in range(3):\n    N += i\n" + F + "\nN\n": (
        "# adds\nN = 1\nfor i in range(3):\n    N += i\n" + F,
        True,
    ),
    "def f(\nx,\n):\n    '''\nText:\n'''\n    return (\nx)\nEnd.\n": (
        "def f(\nx,\n):\n    '''\nText:\n'''\n    return (\nx)",
        True,
    ),
    "def f(x):\n    return \"(\" + '[' + x  # {(\nEnd.\n": (
        "def f(x):\n    return \"(\" + '[' + x  # {(",
        True,
    ),
    f"Here it is:\n```python\n{F}\n```\nIt adds one.": (F, True),
    f"Here it is:\n\n```py\n{F}\n\nassert f(1) == 2\n```": (F + "\n\nassert f(1) == 2", True),
    f"```\n{F}\n": (F, False),
    "```python": ("", False),
    "1. So:\n   ```python\n   def f(x):\n       return 1\n   ```\n": ("def f(x):\n    return 1", True),
    f"First:\n```bash\npip install x\n```\nThen:\n```Python\n{F}\n```\n": (F, True),
    f"Sure, here it is.\n\n{F}\n\nIt adds one.\n": (F, True),
    f"<think>def g(): pass\n```\nx\n```\n</think>\n\n{F}\n": (F, False),
    "<think>\n" + F: ("", False),
    "    return x + 1": ("    return x + 1", False),
    "    return x + 1\n\n\ndef g():\n    pass\n": ("    return x + 1", True),
    "    y = 1\n\n    return y\nx = 3\n": ("    y = 1\n\n    return y", True),
    "\treturn x + 1\n# end\nprint(1)\n": ("\treturn x + 1\n# end", True),
    "    y = '''\nText\n'''\n    return y\n": ("    y = '''\nText\n'''\n    return y", False),
    "```python\n    return x + 1\n```": ("    return x + 1", True),
    "no code": ("no code", False),
    "": ("", False),
}


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_the_program_in_an_answer(answer):
    assert (prompts.extract_code(answer, "program"), prompts.code_ended(answer, "program")) == ANSWERS[answer]


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_nothing_that_follows_an_end_changes_the_program(answer):
    for n in range(len(answer) + 1):
        if prompts.code_ended(answer[:n], "program"):
            found = prompts.extract_code(answer[:n], "program")
            after = (
                answer[n:],
                "",
                "x",
                " = 3",
                "(",
                "'''",
                '"',
                "\n```\n",
                "\ndef g(): pass\n",
                "\n    more",
                "[DONE]",
            )
            assert {prompts.extract_code(answer[:n] + text, "program") for text in after} == {found}
            assert all(prompts.code_ended(answer[:n] + text, "program") for text in after)
            break


def test_a_long_answer_is_cut_quickly():
    for text in (
        "def f(\n" + "x,\n" * 20_000,
        "'" * 50_000,
        "    x\n" * 20_000,
        "import a,\n" * 20_000,
        "``` \n" * 20_000,
    ):
        tasks.cut(text)


def test_the_gold_code_is_the_program_in_itself(sets):
    for q in (*questions(sets, "mbpp"), *questions(sets, "humaneval")):
        assert prompts.extract_code(q.gold, q.form) == q.gold


@strict
def test_an_answer_may_be_a_function_or_its_rest(sets, python):
    q = questions(sets, "humaneval")[0]
    answers = ["    return x + 1", "def inc(x):\n    return x + 1", "def inc(x): return x + two() - 1",
               q.text + "\n    return x + 1",
               "    return x", "return x + 1", "def other(x): return x + 1"]  # fmt: skip
    with Verifier(1, python) as verifier:
        verdicts = verifier.run([job(q, answer, 5.0) for answer in answers])
    assert [v.verdict for v in verdicts] == ["correct"] * 4 + ["wrong", "error", "wrong"]


@strict
def test_eval_scores_predictions(sets, tmp_path, capsys, python):
    def run(name, rows):
        file = tmp_path / "p.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = ["--data", name, "--data-dir", str(sets[name]), "--predictions", str(file), "--python", python]
        evaluation.main([*argv, "--out", str(tmp_path / "out.jsonl")])
        printed = capsys.readouterr().out
        return printed, json.loads(printed.splitlines()[-1])

    answers = {"HumanEval/1": "    return -x", "HumanEval/0": "    return x"}
    printed, result = run("humaneval", [{"task_id": i, "answer": answer} for i, answer in answers.items()])
    assert (result["n"], result["ex"], result["executable"], result["left_out"]) == (2, 0.5, 1.0, 0)
    assert "pass@1  50.0%" in printed and "EM" not in printed and "em" not in result
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["wrong", "correct"]
    gold = [{"index": q.index, "answer": q.gold} for q in questions(sets, "mbpp")]
    assert run("mbpp", gold)[1]["ex"] == 1.0


@strict
def test_a_run_on_mbpp(sets, folders, tmp_path, python):
    """A tiny model has no right answer: the gold code is chosen, and is what its tests say it is."""
    codelutra.main([
        "--model", folders["gpt2"], "--data", "mbpp", "--data-dir", str(sets["mbpp"]),
        "--out", str(tmp_path / "run"),
        "--iterations", "1", "--answers", "2", "--pairs", "2", "--max-new", "16",
        "--max-length", "500", "--validation", "1",
        "--workers", "1", "--precision", "float32", "--device", "cpu", "--python", python, "--seed", "1",
    ])  # fmt: skip
    first = tmp_path / "run" / "iter_1"
    verdicts = [json.loads(line)["verdict"] for line in (first / "verdicts.jsonl").read_text().splitlines()]
    assert len(verdicts) == 6 and set(verdicts) <= {"error", "wrong"}
    assert len((first / "pairs.jsonl").read_text().splitlines()) >= 3
    scores = json.loads((first / "scores.json").read_text())
    assert scores["dev"]["n"] == 2 and scores["validation"]["groups"]["mbpp"]["n"] == 1
