"""The command line: what cannot be meant is exit code 2, and a data set's presets are defaults."""

import pytest

from settings import parse


@pytest.mark.parametrize(
    "argv",
    [
        "--unknown 1", "--iter 3", "--answers 0", "--answers -3", "--answers two", "--pairs 0", "--lr 0", "--lr -1",
        "--lr nan", "--lr inf",
        "--beta 0", "--beta nan", "--batch-size 0", "--accumulation 0", "--iterations 0", "--max-new 0", "--lora-rank 0",
        "--temperature -0.5", "--top-p 0", "--top-p 1.5", "--limit -1", "--validation -1", "--eval-limit -1", "--lam -1",
        "--warmup -0.1", "--warmup 1.5", "--gold sometimes", "--criterion executable --gold always", "--precision int8",
        "--gold only --objective sft --answers 4",
        "--objective ppo", "--sft-reduction max", "--timeout 0", "--clip 0", "--train-tokens 0",
        "--pairs-per-tree 0", "--seed -1", "--weight-decay -1", "--lora-alpha 0", "--max-length 0",
    ],
)  # fmt: skip
def test_a_bad_value_is_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(argv.split())
    assert stop.value.code == 2 and "error" in capsys.readouterr().err


def test_presets_are_defaults_that_a_flag_overrides():
    config = parse(["--data", "bird", "--beta", "0.5", "--device", "cpu"])
    assert (config.answers, config.pairs, config.lr, config.beta, config.out) == (
        16,
        10,
        5e-5,
        0.5,
        "runs/bird-smollm2-seed0",
    )
    assert parse(["--answers", "3", "--device", "cpu"]).answers == 3 != parse(["--device", "cpu"]).answers
