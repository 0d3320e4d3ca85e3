"""`report.py --pairs`: of every exported pair TRL's own tokenising call makes the tokens of training."""

import json
import shutil
from types import SimpleNamespace

import datasets
import pytest
from conftest import DEV, END, SCHEMAS, TRAIN
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

import data
import prompts
import report
from cli import UserError
from policy import load_tokenizer

datasets.disable_progress_bars()
TEXTS = [text for row in TRAIN + DEV for text in row] + list(SCHEMAS.values())
TEXTS += ["two line breaks\n\n are one token"] * 9
BOS = "<s>"
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content | trim }}"
    "<|endoftext|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_level(with_bos):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [END, BOS, "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    if with_bos:
        bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return bpe


def sentencepiece(before_every_part):
    """Like Llama 2's: a space is ▁, and one more comes before the text, or before every part of it.

    A part is what stands between special tokens. That was the first way, and files of it are still in use.
    """
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    special = [AddedToken(text, special=True, normalized=False) for text in (END, BOS, "<unk>")]
    trainer = BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([part.replace(" ", "▁") for text in TEXTS for part in text.split("\n")], trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = model["vocab"] | {f"<0x{i:02X}>": len(model["vocab"]) + i for i in range(256)}
    bpe.model = models.BPE(vocab, [tuple(m) for m in model["merges"]], unk_token="<unk>", byte_fallback=True)
    if before_every_part:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return bpe


KINDS = {
    "no BOS": lambda: (byte_level(False), None),
    "BOS": lambda: (byte_level(True), None),
    "chat template with BOS": lambda: (byte_level(True), CHAT),
    "chat template without BOS": lambda: (byte_level(False), CHAT.replace("{{ bos_token }}", "")),
    "SentencePiece": lambda: (sentencepiece(False), None),
    "SentencePiece, as it was first": lambda: (sentencepiece(True), None),
}


@pytest.fixture(scope="module")
def models_of(folders, tmp_path_factory):
    """kind → a model's folder with a tokenizer of this kind."""

    def make(kind):
        bpe, chat = KINDS[kind]()
        folder = tmp_path_factory.mktemp("model")
        shutil.copy(f"{folders['gpt2']}/config.json", folder)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=BOS)
        tokenizer.chat_template = chat
        tokenizer.save_pretrained(folder)
        return str(folder)

    return {kind: make(kind) for kind in KINDS}


def make_run(folder, model, spider, *iterations):
    """A run's folder; for each iteration the rows of its pairs.jsonl."""
    config = {"model": model, "data": "spider", "data_dir": str(spider), "validation": 2, "seed": 0}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for t, rows in enumerate(iterations, 1):
        (folder / f"iter_{t}").mkdir()
        (folder / f"iter_{t}" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def trained_on(spider):
    """Questions that are not held back for validation."""
    train = data.load("spider", spider, "train")[0]
    held_back = data.subset(train, 2, 0)
    return [q for q in train if q not in held_back]


def exported(run, capsys):
    """(rows of the file, what was printed)"""
    file = run / "exported.jsonl"
    report.main([str(run), "--pairs", str(file)])
    return [json.loads(line) for line in open(file, encoding="utf-8")], capsys.readouterr().out


def as_trl_does(rows, tokenizer):
    """(prompt, chosen, rejected) token ids of every row, by DPOTrainer's own preparation of a data set."""
    settings = DPOConfig(output_dir="unused", max_length=None, report_to=[], use_cpu=True)
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    rows = datasets.Dataset.from_list(rows)
    made = DPOTrainer._prepare_dataset(trainer, rows, tokenizer, settings, "train")
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in made]


@pytest.mark.parametrize("kind", KINDS)
def test_trl_gets_the_tokens_of_training(models_of, kind, spider, tmp_path, capsys):
    tokenizer, rows, expected = load_tokenizer(models_of[kind]), [], []
    for q in trained_on(spider)[:4]:
        gold = list(prompts.code_ids(q.gold, tokenizer))
        other = list(prompts.code_ids("SELECT '{%  é <b> &amp; \\n', 1 FROM \t pet", tokenizer))
        letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "SELECT"]
        assert len(letters) > len(tokenizer("SELECT", add_special_tokens=False)["input_ids"])
        answers = [gold, gold[:-1], other, other[:-4], [*letters, tokenizer.eos_token_id]]
        pairs = [(0, 1), (1, 0), (0, 2), (3, 2), (0, 2), (0, 4), (4, 0)]
        rows.append({"question": q.index, "answers": answers, "pairs": pairs})
        prompt = prompts.prompt_ids(q, tokenizer)
        expected += [(prompt, answers[c], answers[r]) for c, r in pairs[:5]]
    run = make_run(tmp_path / "run", models_of[kind], spider, rows[:2], rows[2:])
    found, printed = exported(run, capsys)
    assert as_trl_does(found, tokenizer) == expected
    left_out = "8 left out: as text they have other tokens than those that were trained on"
    assert printed == f"{run / 'exported.jsonl'}: 20 pairs; {left_out}\n"


def test_an_answer_that_merges_with_the_prompt_is_left_out(models_of, spider, tmp_path, capsys):
    """The prompt ends with a line break; with one more after it, TRL would read one token for the two."""
    tokenizer, question = load_tokenizer(models_of["BOS"]), trained_on(spider)[0]
    answers = [list(prompts.code_ids(text, tokenizer)) for text in (question.gold, "SELECT 1", "\n SELECT 1")]
    row = {"question": question.index, "answers": answers, "pairs": [[0, 1], [0, 2], [2, 1], [1, 0]]}
    found, printed = exported(make_run(tmp_path / "run", models_of["BOS"], spider, [row]), capsys)
    prompt = prompts.prompt_ids(question, tokenizer)
    assert as_trl_does(found, tokenizer) == [(prompt, answers[c], answers[r]) for c, r in ((0, 1), (1, 0))]
    assert ": 2 pairs; 2 left out" in printed


@pytest.fixture
def plain(folders, spider, tmp_path):
    """A function that makes a run of the tiny model from its iterations' rows, and a row with one pair."""
    tokenizer, question = load_tokenizer(folders["gpt2"]), trained_on(spider)[0]
    answers = [list(prompts.code_ids(text, tokenizer)) for text in (question.gold, "SELECT 2")]
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "SELECT"]  # the text has fewer tokens
    answers.append(letters)
    row = {"question": question.index, "answers": answers, "pairs": [[0, 1]]}
    return lambda *iterations: make_run(tmp_path / "run", folders["gpt2"], spider, *iterations), row


def test_trl_trains_on_the_file(plain, folders, tmp_path):
    make, row = plain
    run, path = make([row], [row]), str(tmp_path / "pairs.jsonl")
    report.main([str(run), "--pairs", path])
    rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    settings = DPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, max_length=None,
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders["gpt2"]), load_tokenizer(folders["gpt2"])
    trainer = DPOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer)
    assert [row["chosen_ids"] for row in trainer.train_dataset] == [row["answers"][0]] * 2
    result = trainer.train()
    assert result.training_loss == pytest.approx(0.6931, abs=1e-3)  # ln 2: its reference is the model itself


def test_a_pair_without_a_rejected_answer_has_none(plain, capsys):
    make, row = plain
    found, _ = exported(make([row | {"pairs": [[0, None], [1, None]]}]), capsys)
    assert [set(pair) for pair in found] == [{"prompt", "chosen", "chat_template_kwargs"}] * 2
    assert "CREATE TABLE" in found[0]["prompt"][0]["content"]
    assert found[1]["chosen"] == [{"role": "assistant", "content": f"SELECT 2{END}"}]


def test_the_adapter_that_a_run_was_started_with_is_not_an_iteration(plain, capsys):
    make, row = plain
    run = make([row], [row])
    for t in (0, 1, 2):
        (run / f"iter_{t}" / "adapter").mkdir(parents=True)
    (run / "iter_7.bak" / "adapter").mkdir(parents=True)
    assert len(exported(run, capsys)[0]) == 2


def test_what_cannot_be_exported_is_one_sentence(plain, capsys, tmp_path):
    make, row = plain
    run = make([row])
    for settings in ("{", "[]", "{}"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "config.json").write_text(settings)
        with pytest.raises(UserError, match="other is not the folder of a run"):
            exported(tmp_path / "other", capsys)
    (run / "iter_1" / "pairs.jsonl").write_text(json.dumps(row | {"pairs": [[0, 2]]}) + "\n")
    with pytest.raises(UserError, match="none of the 1 pairs of .*run can be exported"):
        exported(run, capsys)
    (run / "iter_1" / "pairs.jsonl").write_text(json.dumps(row | {"question": 99}) + "\n")
    with pytest.raises(UserError, match="pairs of questions that its data do not have: 99"):
        exported(run, capsys)
    (run / "questions.json").write_text(json.dumps({"digest": "of other data"}))
    with pytest.raises(UserError, match="the data have changed since .*run was begun"):
        exported(run, capsys)
    (run / "iter_1" / "pairs.jsonl").write_text(json.dumps({"question": 0}) + "\n")
    with pytest.raises(UserError, match="pairs.jsonl is damaged"):
        exported(run, capsys)
    shutil.rmtree(run / "iter_1")
    with pytest.raises(UserError, match="has no pairs yet"):
        exported(run, capsys)
    assert not (run / "exported.jsonl").exists()
