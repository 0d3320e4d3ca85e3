"""The further analyses: pass@k by enumeration, preferences by plain sequences, similarity by hand."""

import itertools
import json

import pytest
import torch
from conftest import plain_logps

import analysis
import data
import prompts
from cli import UserError


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    n, right = 6, [0, 2, 5, 6]
    for k, shares in analysis.pass_at_k(right, n).items():
        for c, share in zip(right, shares, strict=True):
            subsets = [any(i < c for i in chosen) for chosen in itertools.combinations(range(n), k)]
            assert share == pytest.approx(sum(subsets) / len(subsets))
    assert list(analysis.pass_at_k([1], 6)) == [1, 2, 4, 6] and list(analysis.pass_at_k([1], 1)) == [1]


def test_the_score_of_an_answer_is_that_of_its_plain_sequence(policy, reference, spider):
    questions = data.load("spider", spider, "dev")[0][:2]
    codes = [["SELECT 1", "SELECT count(*) FROM owner"], ["SELECT age"]]
    found = analysis.answer_scores(policy, questions, codes, "test")
    for q, texts, scores in zip(questions, codes, found):
        for text, (summed, per_token) in zip(texts, scores, strict=True):
            ids = [
                *policy.tokenizer(text, add_special_tokens=False)["input_ids"],
                policy.tokenizer.eos_token_id,
            ]
            with torch.no_grad():
                plain = plain_logps(reference, prompts.prompt_ids(q, policy.tokenizer), ids)
            assert summed == pytest.approx(plain.sum().item(), rel=1e-4)
            assert per_token == pytest.approx(plain.mean().item(), rel=1e-4)


def last(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_preferences_pair_right_with_wrong_answers_of_other_systems(
    spider, folders, tmp_path, capsys, monkeypatch
):
    golds = [q.gold for q in data.load("spider", spider, "dev")[0]]
    systems = (
        golds,  # all right
        [golds[0], "SELECT 17", "SELECT 18", "SELECT 18", *golds[4:]],  # 1, 2 and 3 wrong
        # 0 right in other words, 1 wrong once more
        ["SELECT count(id) FROM owner", "SELECT 19", "SELECT 18", *golds[3:]],
    )
    files = []
    for i, codes in enumerate(systems):
        files.append(tmp_path / f"{i}.txt")
        files[-1].write_text("".join(code + "\n" for code in codes))
    # white space makes no other answer
    files[1].write_text(files[1].read_text().replace("SELECT 18\n", "SELECT 18 \n"))

    def scores(policy, questions, codes, progress):
        """π_0 likes long answers; the policy dislikes SELECT 17 and likes SELECT 18."""

        def like(code):
            return {"SELECT 17": 5, "SELECT 18": 99}.get(code, 50 if progress == "policy" else len(code))

        return [torch.tensor([[like(c), 1.0] for c in of], dtype=torch.float64).numpy() for of in codes]

    monkeypatch.setattr(analysis, "answer_scores", scores)
    monkeypatch.setattr(analysis.lora, "read", lambda folder: None)
    monkeypatch.setattr(analysis.lora, "load", lambda model, folder: None)
    flags = ["--data", "spider", "--data-dir", str(spider), "--workers", "1"]
    arguments = ["preferences", "--model", folders["gpt2"], *flags]
    analysis.main([*arguments, *map(str, files)])
    found = last(capsys)
    # question 1 with SELECT 17 and 19 wrong, 2 and 3 with SELECT 18 wrong
    assert (found["n"], found["pairs"]) == (3, 4)
    assert found["π_0, summed"][0] == pytest.approx((1 + 0 + 0) / 3) and "policy, summed" not in found
    assert found["π_0, per token"] == [0.5, 0.5, 0.5]  # all alike: ties
    analysis.main([*arguments, "--adapter", "x", *map(str, files)])
    found = last(capsys)
    assert found["policy, summed"][0] == pytest.approx((0.75 + 0 + 0) / 3)  # 17 below gold, 19 equal to it
    assert found["policy against π_0, summed"][0] == pytest.approx((1 / 2 + 1 + 1) / 3)
    with pytest.raises(UserError, match="both a right and a wrong"):
        analysis.main([*arguments, str(files[0])])


def test_passes_counts_what_the_verifier_finds_right(spider, folders, capsys, monkeypatch):
    # the first is right for question 0 alone
    codes = itertools.cycle(["SELECT count(*) FROM owner", "SELECT 7"])
    monkeypatch.setattr(analysis, "extract_code", lambda text, language: next(codes))
    flags = ["--data", "spider", "--data-dir", str(spider), "--workers", "1"]
    analysis.main(["passes", "--model", folders["gpt2"], *flags, "--answers", "2"])
    found = last(capsys)
    assert (found["n"], found["answers"]) == (6, 2)
    assert [found["pass"][k][0] for k in ("1", "2")] == pytest.approx([0.5 / 6, 1 / 6])
    assert found["pass"]["2"][2] > 1 / 6


class Letters:
    """An encoder in which a text is the set of its letters."""

    def __init__(self, name):
        pass

    def __call__(self, texts):
        vectors = torch.tensor([[float(chr(c) in text) for c in range(97, 123)] for text in texts])
        return torch.nn.functional.normalize(vectors, dim=-1)


def test_similarity_is_split_by_what_the_base_model_had_right(tmp_path, monkeypatch, capsys):
    answers = ((("ab", "correct"), ("cd", "wrong")), (("ax", "wrong"), ("ab", "correct")))
    for t, of in enumerate(answers):
        (tmp_path / f"iter_{t}").mkdir()
        rows = [{"gold": "ab", "answer": a, "verdict": v} for a, v in of]
        (tmp_path / f"iter_{t}" / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(analysis, "Embedder", Letters)
    analysis.main(["similarity", str(tmp_path)])
    before, after = last(capsys)["iterations"]
    assert before["all"][0] == pytest.approx(0.5) and before["all"][3] == 2
    assert [before[k][0] for k in ("π_0 right", "π_0 wrong")] == pytest.approx([1, 0])
    assert [after[k][0] for k in ("π_0 right", "π_0 wrong")] == pytest.approx([0.5, 1])


def test_the_encoder_averages_over_the_text_alone(tmp_path, tokenizer):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(
        vocab_size=352, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
    )).save_pretrained(tmp_path)  # fmt: skip
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    embed = analysis.Embedder(str(tmp_path))
    alone, together = embed(["SELECT 1"]), embed(["SELECT 1", "SELECT a, b, c FROM t WHERE d > 17"])
    assert torch.allclose(alone[0], together[0], atol=1e-5) and torch.allclose(
        together.norm(dim=1), torch.ones(2)
    )


@pytest.mark.parametrize(
    "argv, words",
    [
        (["similarity", "/nothing"], "not the folder of a run"),
        (["preferences", "--data", "spider", "--data-dir", "/nothing", "x"], "is missing"),
        (["passes", "--adapter", "/nothing"], "adapter"),
    ],
)
def test_what_is_not_there_is_one_sentence(argv, words):
    with pytest.raises(UserError, match=words):
        analysis.main(argv)


def test_an_encoder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        analysis.Embedder(str(tmp_path / "none"))
