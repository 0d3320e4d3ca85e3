"""The benches' own promises: whom they leave out, what their exit code says."""

import argparse
import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter

import pytest
import torch
from test_verify_cli import CONTEXT, strict

from bench import agreement, displacement, ds1000_references, experiment, peers, table, variants, verification
from data import Answer, Question
from policy import settled
from run_folder import begun, check_settings, write_settings
from settings import Config, parse
from verify import Verdict, Verifier

MISSING = CONTEXT.replace("return 7, 14", "return 7, open('/no/such/data.csv')")
BY_NAME = MISSING.replace("return 7", "load_dataset = open\n    return 7").replace("open('", "load_dataset('")


@pytest.fixture
def problems(tmp_path):
    def problems(*rows):
        rows = [
            {
                "metadata": {"library": "Numpy", "problem_id": i},
                "prompt": "",
                "reference_code": code,
                "code_context": test,
            }
            for i, (code, test) in enumerate(rows)
        ]
        with gzip.open(tmp_path / "ds1000.jsonl.gz", "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path)

    return problems


RIGHT = ("result = x * 2", CONTEXT)


@strict
@pytest.mark.parametrize("other, code, words", [
    (("result = x * 2", BY_NAME), 0, "1 Numpy: left out"),
    (("result = x * 2", MISSING), 1, "1 Numpy: no verdict"),  # nothing that is loaded by name
    (("result = x * 2", BY_NAME.replace("'/no/such/data.csv'", "5, 6, 7, 8, 9, 10, 11, 12")), 1,
     "1 Numpy: no verdict"),
    (("result = x", CONTEXT), 1, "1 Numpy: wrong"),
], ids=["not fetched", "another file", "another fault", "wrong"])  # fmt: skip
def test_references(problems, monkeypatch, capsys, other, code, words):
    monkeypatch.setattr(sys, "argv", ["x", "--workers", "1", "--data-dir", problems(RIGHT, other)])
    assert ds1000_references.main() == code
    out = capsys.readouterr().out
    assert words in out and "1 of 2 references pass" in out


@strict
def test_agreement_leaves_out_what_has_no_verdict(problems, tmp_path, capsys):
    folder = problems(RIGHT, ("result = x * 2", BY_NAME))
    rows = [
        {"problem_id": i, "answer": "result = x * 2  # \u2028", "pass": True, "library": "Numpy"}
        for i in range(2)
    ]
    file = tmp_path / "model.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with Verifier(1) as verifier:
        found = agreement.ds1000(folder, file, verifier)
    assert found["no_verdict"] == [1] and (found["pass"]["rows"], found["pass"]["agree"]) == (1, 1)


@pytest.mark.parametrize("size", experiment.SIZES)
@pytest.mark.parametrize("method", experiment.METHODS)
def test_every_run_of_the_experiment_has_a_command_that_is_accepted(tmp_path, size, method):
    args = argparse.Namespace(
        size=size, model="m", data="spider", data_dir="d", flags="--device cpu", out=tmp_path
    )
    config = parse(experiment.command(args, method, 7))
    assert config.draws == (method != "gold") and (config.seed, config.device) == (7, "cpu")


BASE, DRAWS, PAIRS = "questions.json", "iter_1/answers.jsonl", "iter_1/reference.safetensors"


@pytest.mark.parametrize("method, shared", [
    ("dpo", {BASE, DRAWS, PAIRS}), ("dpop", {BASE, DRAWS, PAIRS}), ("positives", {BASE, DRAWS}),
    ("nearest", {BASE, DRAWS}), ("normalised", {BASE, DRAWS}), ("planned", set()), ("gold", {BASE}),
])  # fmt: skip
def test_runs_of_the_experiment_share_what_is_the_same(tmp_path, method, shared):
    args = argparse.Namespace(
        size="first", model="m", data="spider", data_dir="d", flags="--device cpu", out=tmp_path
    )
    for first, seed in (("dual", 0), ("nearest", 0), ("dual", 1)):
        folder = tmp_path / f"first-{first}-seed{seed}"
        for name in (BASE, DRAWS, PAIRS):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{first} {seed}")
        write_settings(settled(parse(experiment.command(args, first, seed))), folder, "24 Dec 2026")
    command = experiment.command(args, method, 0)
    run = tmp_path / f"first-{method}-seed0"
    if method == "nearest":  # begun again
        shutil.rmtree(run)
    experiment.begin(command)
    assert {name for name in (BASE, DRAWS, PAIRS) if (run / name).exists()} == shared
    assert all((run / name).read_text().endswith(" 0") for name in shared)
    assert PAIRS not in shared or (run / PAIRS).read_text() == "dual 0"
    if not shared:
        assert not run.exists()
        return
    check_settings(settled(parse(command)), run)  # it is a run that may be resumed …
    assert begun(run)["day"] == "24 Dec 2026"  # … whose prompts are the first run's
    # nothing is shared with runs of another model or with other questions
    shutil.rmtree(run)
    for args.model, args.flags in (("n", "--device cpu"), ("m", "--device cpu --limit 200")):
        experiment.begin(experiment.command(args, method, 0))
        assert not run.exists()


def test_a_variant_replaces_a_function_of_the_method():
    for variant in variants.VARIANTS.values():
        before = getattr(variant.module, variant.name)
        assert callable(before) and variant.replacement is not before


def test_pair_rules_of_the_variants():
    rng = random.Random(0)
    chosen, rejected = [(1, 2, 3), (1, 2, 3), (7, 8, 9)], [(1, 2, 4), (5, 6), (7, 8, 8)]
    pairs = variants.distinct(chosen, rejected, 10, rng)
    assert len(pairs) == len(set(pairs)) == 6 and len(variants.distinct(chosen, rejected, 4, rng)) == 4
    near = {(1, 2, 3): (1, 2, 4), (7, 8, 9): (7, 8, 8)}
    assert all(near[c] == r for c, r in variants.nearest(chosen, rejected, 8, rng))
    assert all(r != near[c] for c, r in variants.farthest(chosen, rejected, 8, rng))


def test_alike_rejects_only_what_reads_as_many_tables_as_a_chosen_answer():
    one, other, join = "SELECT a FROM t", "SELECT b FROM t", "SELECT a FROM t JOIN u ON t.i = u.i"
    drawn = [
        (Answer(0, m, (m,), text, -1.0, True), Verdict("correct" if text == one else "wrong", "", 0.0))
        for m, text in enumerate([one, other, join])
    ]
    question = Question(0, "db", "", "which?", one)
    given = Config(), question, (9,), one, drawn, Counter()
    assert variants.sort_answers(*given) == ([(0,)], [(1,), (2,)])
    assert variants.alike(*given) == ([(0,)], [(1,)])


def test_the_tables_that_queries_read_are_kept_as_digits(tmp_path):
    one, two = "SELECT a FROM t", "select a\nfrom t join u"
    rows = [(one, one), (two, one), (two + " JOIN v" * 9, "")]
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(json.dumps({"gold": gold, "answer": answer}) + "\n" for gold, answer in rows))
    assert experiment.table_counts(file) == {"gold": "129", "answer": "110"}


def test_variants_are_put_together_by_a_plus():
    assert [variant.name for variant in variants.parts("dpop+nearest")] == ["dpo_margin", "draw_pairs"]
    assert variants.parts("dual") == variants.parts("dpop+dual") == []
    assert set(experiment.METHODS) >= {"dpop", "dpop+nearest"}


def test_displacement_of_a_run_and_what_tells_its_pairs_apart(finished, monkeypatch, capsys):
    verdicts = finished / "iter_0" / "dev.jsonl"
    rows = [json.loads(line) for line in verdicts.read_text().splitlines()]
    # as if the gold query had been π_0's answer everywhere: tiny GPT-2 has no right one
    right = [row | {"answer": row["gold"], "verdict": "correct"} for row in rows]
    monkeypatch.setattr(displacement, "read_lines", lambda path: right if path == verdicts else None)
    monkeypatch.setattr(sys, "argv", ["displacement.py", str(finished)])
    displacement.main()
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {finished.name} |")]
    lines = [line.strip("| ").split(" | ") for line in named]
    assert float(lines[0][1]) > 0  # it was trained on such queries; all of these read one table
    pairs = json.loads((finished / "iter_1" / "pairs_summary.json").read_text())["pairs"]
    assert sum(int(line[2]) for line in lines[1:]) == pairs


def test_the_margin_of_dpop_falls_only_where_the_chosen_answer_fell():
    chosen, rejected, zero = torch.tensor([1.0, -1.0]), torch.tensor([-2.0, -2.0]), torch.zeros(2)
    assert variants.dpop_margin(chosen, rejected, zero, zero).tolist() == [3.0, 1.0 - 5.0]


def test_recorded_answers_may_hold_line_separators(tmp_path):
    row = {"answer": "SELECT '\u2028 \u0085 \x1e'"}
    (tmp_path / "rows.jsonl").write_text(2 * (json.dumps(row, ensure_ascii=False) + "\n"), encoding="utf-8")
    assert agreement.lines(tmp_path / "rows.jsonl") == [row, row]


@pytest.mark.parametrize("fails", [False, True])
def test_verification_leaves_no_temporary_files(tmp_path, monkeypatch, capsys, fails):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    leave = "import tempfile; print(tempfile.mkstemp()[1]); tempfile.mkdtemp()"

    def leaving(*_):
        tempfile.mkstemp()
        path = subprocess.run(
            [sys.executable, "-c", leave], capture_output=True, text=True, check=True
        ).stdout.strip()
        assert os.path.exists(path) and path.startswith(str(tmp_path))
        return (1.0, 1.0) if not fails else 1 / 0

    monkeypatch.setattr(verification, "sql", leaving)
    monkeypatch.setattr(verification, "python", leaving)
    monkeypatch.setattr(sys, "argv", ["x", "--official", ".", "--spider", ".", "--ds1000", "."])
    if fails:
        with pytest.raises(ZeroDivisionError):
            verification.main()
    else:
        verification.main()
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["ratio"] == 1
    assert os.listdir(tmp_path) == [] and tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path)


def test_forks_alone_leaves_no_process(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nread line\necho ready\nread line\n")
    fake.chmod(0o755)
    started, popen = [], subprocess.Popen
    args = argparse.Namespace(python=str(fake), workers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
        assert verification.forks_alone(args, ["a", "b"]) > 0
        patch.setattr(verification.json, "dumps", lambda programs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            verification.forks_alone(args, ["a", "b"])
    assert len(started) == 4 and all(process.poll() is not None for process in started)


def test_the_table_of_an_experiment_by_hand(tmp_path, monkeypatch, capsys):
    """Four questions; `gold` has two seeds, of which `dual` has one."""

    def keep(method, seed, *dev):
        iterations = [
            {
                "scores": {"dev": {"ex": verdicts.count("c") / 4, "em": 0.25, "executable": 0.5}},
                "verdicts": {"dev": verdicts},
                "train": {"loss": [1.0] * 3},
                # the first two questions' gold queries read one table; an error reads none
                "tables": {"gold": "1123", "answer": verdicts.translate(str.maketrans("cwex", "2200"))},
            }
            for verdicts in dev
        ]
        path = tmp_path / f"first-{method}-seed{seed}.json"
        path.write_text(json.dumps({"config": {}, "iterations": iterations}))
        return str(path)

    files = [
        keep("gold", 0, "cwee", "ccwe"),
        keep("gold", 1, "cwee", "cccc"),
        keep("dual", 0, "cwee", "ewwx"),
    ]
    files.append(keep("dpo", 0, "cwee"))  # has not ended
    monkeypatch.setattr(sys, "argv", ["table.py", *files])
    table.main()
    first, second = capsys.readouterr().out.split("\n\nEX where the gold query reads")
    lines = first.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| gold, π_1", "| dual, π_1"]
    _, mean, each, base, apart, executable, em, steps = lines[0].strip("| ").split(" | ")
    assert (mean, each, executable, em, steps) == ("75.0", "50.0, 100.0", "50.0", "25.0", "3/3")
    assert base.startswith("+50.0 (") and apart.startswith("+50.0 (") and apart.endswith(", 1 seed")
    assert " | -25.0 (" in lines[1]
    base, gold, dual = (line.strip("|").split("|") for line in second.splitlines()[-3:])
    assert [cell.strip() for cell in base] == ["base", "50.0", "", "0.0", "", "100"]
    _, one, to_dual, several, _, missing = map(str.strip, gold)
    assert (one, several, missing) == ("100.0", "50.0", "50") and to_dual.startswith("+100.0 (")
    assert [cell.strip() for cell in dual] == ["dual, π_1", "0.0", "", "0.0", "", "50"]


def test_verdicts_are_kept_as_letters(tmp_path):
    verdicts = ["correct", "wrong", "error", "denied", "timeout", "crash", None]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps({"verdict": verdict}) + "\n" for verdict in verdicts))
    assert experiment.letters(path) == "cwedtx-"


FAKE = """import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request == {}:
        sys.exit("no more memory")
    reply = {"engine": sys.argv[1], "settings": json.loads(sys.argv[2]), "got": request}
    print(json.dumps(reply), flush=True)
"""


def test_a_peer_answers_line_by_line_and_says_why_it_ended(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    with peers.Peer("fake", settings={"questions": 3}, program=str(tmp_path / "fake.py")) as peer:
        for request in ({"load": "x"}, {"prompts": [[1, 2]], "new": 4}):
            reply = peer.ask(**request)
            assert reply == {"engine": "fake", "settings": {"questions": 3}, "got": request}
        with pytest.raises(RuntimeError, match="no more memory"):
            peer.ask()
    assert peer.process.returncode == 1


def test_kept_is_what_comes_before_the_first_end_and_that():
    assert peers.kept([5, 2, 7, 3, 2], (2, 3)) == [5, 2]
    assert peers.kept([3], (2, 3)) == [3] and peers.kept([5, 6], (2, 3)) == [5, 6]


@pytest.fixture
def sampling(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(peers.__file__))
    from bench import sampling

    return sampling


def asked(engine, **request):
    replies = io.StringIO()
    peers.serve(engine, [json.dumps(request)], replies)
    return json.loads(replies.getvalue())


def test_engines_draw_from_the_policy(sampling, policy, folder, reference):
    """Ours and transformers' two, each scored; draws from the 20 most likely tokens alone are told apart."""
    torch.manual_seed(0)
    prompts, end = [[9 * i % 300 + 3 for i in range(n)] for n in (40, 21, 33)], list(policy.end_ids)
    drawn = {"ours": sampling.Ours(policy, 24, 12, 32768).draw(prompts, False)}
    for name in peers.IN_OUR_PYTHON:
        engine = peers.ENGINES[name]({"questions": 2})
        asked(engine, load=folder, precision="float32", device="cpu")
        request = {"prompts": prompts, "answers": 24, "new": 12, "end": end}
        drawn[name] = asked(engine, **request, fixed=False)["ids"]
        fixed = asked(engine, **request | {"answers": 2}, fixed=True)["ids"]
        assert [[len(a) for a in answers] for answers in fixed] == [[12, 12]] * 3
    truncated = [
        reference.generate(
            torch.tensor([prompt] * 24), do_sample=True, top_k=20, max_new_tokens=12, pad_token_id=0
        )[:, len(prompt) :].tolist()
        for prompt in prompts
    ]
    drawn["truncated"] = [[peers.kept(a, end) for a in answers] for answers in truncated]
    drawn["of other prompts"] = drawn["generate"][1:] + drawn["generate"][:1]
    for name, ids in drawn.items():
        assert [len(answers) for answers in ids] == [24] * 3
        assert all(not set(a[:-1]) & set(end) and (len(a) == 12 or a[-1] in end) for a in sum(ids, []))
        found = sampling.scored(reference, prompts, ids)
        other = name in ("truncated", "of other prompts")
        assert (abs(found["surplus"]) > 5 * found["surplus error"]) == other, (name, found)


def test_the_strongest_peer_stands_first(sampling, folders, spider, monkeypatch, capsys):
    """Engines that take set times: tokens per second are of what they kept, the adapter's cost is added.

    One engine fails and is left out.
    """
    seconds = {"generate": 8.0, "llama.cpp-bf16": None, "llama.cpp-f32": 2.0, "llama.cpp-packaged": 1.0}

    class Fake:
        def __init__(self, name, *_, **__):
            self.name = name

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

        def ask(self, **request):
            if "load" in request:
                return {"seconds": 100.0, "ids": None, "mib": None}
            if seconds[self.name] is None:
                raise RuntimeError("no more memory")
            drawn = [[[5, 6, 7]] * request["answers"] for _ in request["prompts"]]
            return {"seconds": seconds[self.name], "ids": drawn, "mib": None}

    monkeypatch.setattr(sampling, "Peer", Fake)
    monkeypatch.setattr(sampling, "locate", lambda name: (name, {"gguf_file": "x"}))
    arguments = ["--model", folders["llama"], "--spider", str(spider), "--questions", "2", "--answers", "4"]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--new", "8", "--against", *seconds])
    sampling.main()
    out = capsys.readouterr().out
    assert "llama.cpp-bf16 is left out: no more memory" in out
    result = json.loads(out.splitlines()[-1])
    rows = [name.removeprefix("2 Spider questions, ") for name in result["all"] if "iteration" not in name]
    assert rows == [
        "llama.cpp-f32",
        "generate",
        "llama.cpp-packaged (quantised: not the policy that is trained)",
    ]
    assert result["what"].endswith("llama.cpp-f32") and result["theirs"] == 2 * 4 * 3 / 2.0
    costs = result["all"]["2 Spider questions, llama.cpp-f32, an iteration"]
    assert costs["theirs"] == 64 / 2 * 2.0 + 100 and costs["ratio"] == costs["theirs"] / costs["ours"]
