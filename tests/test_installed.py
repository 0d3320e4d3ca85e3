"""The verifier as an installed package, and that all who name the project's version agree."""

import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import tomllib
from test_verify_cli import CONTEXT, strict

import verifier

ROOT = Path(__file__).resolve().parent.parent
DATABASE = ROOT / "data/shop/database/bakery/bakery.sqlite"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """site-packages of a new environment in which the verifier, and nothing else, is installed."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # a build writes beside its sources
    shutil.copytree(ROOT / "verifier", source / "verifier", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("verify.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(folder / "venv", symlinks=True)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, cwd=folder)
    return site


def judge(site, *jobs):
    """Each job's verdict, by the installed command."""
    command = [site.parents[2] / "bin" / "python", site / "bin" / "codelutra-verify", "--workers", "1"]
    text = "".join(json.dumps({"id": i, **job}) + "\n" for i, job in enumerate(jobs))
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["verdict"] for line in done.stdout.splitlines()]


def test_nothing_but_the_verifier_is_installed(site):
    modules = {path.name for path in site.iterdir() if path.suffix != ".dist-info"} - {"__pycache__", "bin"}
    assert modules == {"verify.py", "verifier"}
    metadata = next(site.glob("*.dist-info")).joinpath("METADATA").read_text()
    assert f"Version: {verifier.__version__}\n" in metadata and "Requires-Dist" not in metadata


def test_the_installed_command_judges_queries(site):
    job = {"kind": "sql", "database": str(DATABASE), "gold": "SELECT count(*) FROM sales"}
    assert judge(site, {**job, "answer": "SELECT count(id) FROM sales"}, {**job, "answer": "SELECT 1"}) == [
        "correct",
        "wrong",
    ]


@strict
def test_a_program_finds_the_libraries_that_lie_beside_the_installed_verifier(site):
    """A verifier that is not installed hides its folder from programs; here their libraries are in it."""
    (site / "a_library.py").write_text("def double(x): return 2 * x\n")
    (site / "bisect.py").write_text("raise ImportError('hides the standard library')\n")
    try:
        job = {"kind": "python", "context": CONTEXT}
        answer = "import a_library, bisect\nresult = a_library.double(x)"
        assert judge(site, {**job, "answer": answer}, {**job, "answer": "result = x"}) == ["correct", "wrong"]
    finally:
        for name in ("a_library.py", "bisect.py"):
            (site / name).unlink()


def test_all_name_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "verifier.__version__"}
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == verifier.__version__
    assert f"\n## {verifier.__version__} (" in (ROOT / "CHANGELOG.md").read_text()
