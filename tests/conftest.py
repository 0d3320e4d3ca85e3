"""Fixtures: tiny GPT-2 and Llama with random weights, their tokenizer, a tiny set like Spider's, a whole run.

Nothing is downloaded. The models are saved as folders, so `load_policy(folder)` and `--model FOLDER` load
them like any other; an independent copy with transformers' own attention is `reference(folder)`.
"""

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

torch.set_num_threads(1)
# no thread that may hold tqdm's lock while a test forks: the child would wait for ever
tqdm.monitor_interval = 0

END = "<|endoftext|>"
SCHEMAS = {
    "pets": """CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
               CREATE TABLE pet (id INTEGER PRIMARY KEY, owner_id INTEGER, kind TEXT, age INTEGER);
               INSERT INTO owner VALUES (1, 'Ana', 'Porto'), (2, 'Ben', 'Oslo'), (3, 'Cleo', 'Porto');
               INSERT INTO pet VALUES (1, 1, 'cat', 3), (2, 1, 'dog', 5), (3, 2, 'cat', 9), """
    "(4, 3, 'fish', 1);",
    "books": """CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT, year INTEGER, price REAL);
                INSERT INTO book VALUES (1, 'Dust', 1999, 7.5), (2, 'Rain', 2005, 9.0), """
    "(3, 'Salt', 2011, 12.25);",
}
TRAIN = [
    ("pets", "How many pets are there?", "SELECT count(*) FROM pet"),
    ("pets", "List the names of all owners.", "SELECT name FROM owner"),
    ("pets", "How old is the oldest pet?", "SELECT max(age) FROM pet"),
    ("pets", "Which owners live in Porto?", "SELECT name FROM owner WHERE city = 'Porto'"),
    ("pets", "How many cats are there?", "SELECT count(*) FROM pet WHERE kind = 'cat'"),
    ("pets", "List the kinds of pets.", "SELECT DISTINCT kind FROM pet"),
    ("books", "How many books are there?", "SELECT count(*) FROM book"),
    ("books", "List all titles.", "SELECT title FROM book"),
    ("books", "What is the mean price?", "SELECT avg(price) FROM book"),
    ("books", "Which books came out after 2000?", "SELECT title FROM book WHERE year > 2000"),
    ("books", "What is the cheapest price?", "SELECT min(price) FROM book"),
    ("books", "List titles by year.", "SELECT title FROM book ORDER BY year"),
]
DEV = [
    ("pets", "How many owners are there?", "SELECT count(*) FROM owner"),
    ("pets", "How old is the youngest pet?", "SELECT min(age) FROM pet"),
    ("pets", "List all cities.", "SELECT city FROM owner"),
    ("books", "What is the highest price?", "SELECT max(price) FROM book"),
    ("books", "List all years.", "SELECT year FROM book"),
    ("books", "How many books cost more than 8?", "SELECT count(*) FROM book WHERE price > 8"),
]


def make_database(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
        connection.commit()


@pytest.fixture(scope="session")
def spider(tmp_path_factory):
    """Folder of a data set in Spider's layout: 12 training questions, 6 dev questions, 2 databases."""
    folder = tmp_path_factory.mktemp("spider")
    for name, script in SCHEMAS.items():
        make_database(folder / "database" / name / f"{name}.sqlite", script)
    for file, rows in (("train_spider.json", TRAIN), ("dev.json", DEV)):
        rows = [{"db_id": db, "question": text, "query": gold} for db, text, gold in rows]
        (folder / file).write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE of about 350 tokens with an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=352, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([s for row in TRAIN + DEV for s in row] + list(SCHEMAS.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END)


@pytest.fixture(scope="session")
def folders(tokenizer, tmp_path_factory):
    """{family: folder}. Weights are drawn wide, so that the next token depends on the context."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    size = len(tokenizer)
    end = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    configs = {
        "gpt2": GPT2Config(
            vocab_size=size, n_positions=512, n_embd=32, n_layer=2, n_head=4, initializer_range=0.25, **end
        ),
        "llama": LlamaConfig(
            vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.25,
            tie_word_embeddings=False, **end
        ),
    }  # fmt: skip
    found = {}
    for family, config in configs.items():
        torch.manual_seed(1)
        model = (GPT2LMHeadModel if family == "gpt2" else LlamaForCausalLM)(config).float()
        folder = tmp_path_factory.mktemp(f"tiny-{family}")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[family] = str(folder)
    return found


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def policy(folder):
    from policy import load_policy

    return load_policy(folder, "float32", "cpu")


@pytest.fixture
def reference(folder):
    """An independent copy of the model, with transformers' own attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="sdpa", dtype=torch.float32
    ).eval()


def plain_logps(model, prompt, answer):
    """log π of every token of one answer, from one plain sequence: (len(answer),)."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return rows[torch.arange(len(answer)), torch.tensor(answer)]


# ---- a whole run on the tiny GPT-2 -------------------------------------------------------------------------

COMPARED = (
    "answers.jsonl", "pairs.jsonl", "pairs_summary.json", "reference.safetensors", "scores.json", "dev.jsonl",
    "validation.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
)  # fmt: skip


def command(folders, spider, run, *extra):
    return [
        "--model", folders["gpt2"], "--data", "spider", "--data-dir", str(spider), "--out", str(run),
        "--iterations", "2", "--answers", "4", "--pairs", "3", "--max-new", "12", "--batch-size", "6",
        "--validation", "2", "--min-gain", "-1", "--lr", "0.01", "--workers", "1", "--precision", "float32",
        "--timeout", "5", "--device", "cpu", "--batch-tokens", "150", "--train-tokens", "500", "--seed", "3",
        *extra,
    ]  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def finished(folders, spider, tmp_path_factory):
    """The folder of a run that nobody stopped; no test changes it."""
    import codelutra

    run = tmp_path_factory.mktemp("runs") / "finished"
    codelutra.main(command(folders, spider, run))
    return run


@pytest.fixture
def again(folders, spider, finished, tmp_path):
    """`again(*flags)` runs the same command in `again.run`; `again.same()`: is it the finished one?"""
    import codelutra

    def again(*flags):
        codelutra.main(command(folders, spider, again.run, *flags))

    def same():
        for t in (0, 1, 2):
            for name in COMPARED:
                mine, theirs = again.run / f"iter_{t}" / name, finished / f"iter_{t}" / name
                assert mine.exists() == theirs.exists() and (t == 0 or mine.exists()), mine
                assert not mine.exists() or mine.read_bytes() == theirs.read_bytes(), mine
        assert (again.run / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()
        assert not list(again.run.rglob("*.part"))
        return True

    again.run, again.same, again.finished = tmp_path / "run", same, finished
    return again


class Stop(Exception):
    """A run is stopped here."""


def stop_before(module, name, patch, when=lambda *args: True, after=False):
    """Patch a function: it raises Stop instead of the call for whose arguments `when` holds, or `after`."""
    original = getattr(module, name)

    def stopped(*args, **kwargs):
        if not when(*args):
            return original(*args, **kwargs)
        if after:
            original(*args, **kwargs)
        raise Stop

    patch.setattr(module, name, stopped)


def never(*_, **__):
    """In place of a function that must not be called."""
    raise AssertionError("this was made already")
