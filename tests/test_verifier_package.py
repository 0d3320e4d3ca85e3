"""The package `verifier` needs the standard library alone; each process loads its own side and no other."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "verifier").glob("*.py"))
OTHER_SIDE = {
    "zygote", "supervisor", "judge", "asserts", "line", "candidate", "calls", "libraries", "pack", "unpack",
    "emptiness", "sql",
}  # fmt: skip


def imports(tree):
    """The top names that are imported anywhere in a piece of code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0] if node.module and not node.level else "verifier"


def python(code, *flags):
    code = f"import sys; sys.path.append({str(ROOT)!r})\n{code}"
    ended = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd="/")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("module", [path.stem for path in PACKAGE])
def test_each_module_loads_without_any_package_installed(module):
    """On a path of the standard library and this project, without site-packages."""
    python(f"import verifier{'' if module == '__init__' else '.' + module}", "-S", "-I")


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_imports_are_of_the_standard_library_and_of_this_package(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    everywhere, inside = set(imports(tree)), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inside |= set(imports(node))
    # Behind the walls the project's folder cannot be read: the package must be imported in full by then.
    assert "verifier" not in inside
    libraries = everywhere - sys.stdlib_module_names - {"verifier"}
    assert libraries <= (
        inside & {"numpy", "pandas", "scipy", "torch", "tensorflow"} if path.stem == "unpack" else set()
    )


def test_the_package_itself_imports_nothing():
    """Each SQL worker would pay for it."""
    assert not set(imports(ast.parse((ROOT / "verifier" / "__init__.py").read_text(encoding="utf-8"))))
    assert python("import verifier; print([m for m in sys.modules if m.startswith('verifier.')])") == "[]\n"


def test_no_file_of_the_project_hides_one_of_the_standard_library():
    """Every command has the project's folder first on its path."""
    names = {path.stem for path in ROOT.glob("*.py")}
    assert len(names) > 10 and not names & sys.stdlib_module_names


def loaded(module):
    shown = python(
        f"import {module}; print(*(m[9:] for m in sys.modules if m.startswith('verifier.')))", "-S", "-I"
    )
    return set(shown.split())


def test_the_main_process_never_loads_the_other_side():
    mine = loaded("verify")
    assert {"interpreter", "workers", "walls"} <= mine and not mine & OTHER_SIDE


def test_a_sql_worker_loads_what_it_needs():
    assert loaded("verifier.sql") == {"sql", "beside", "child", "compare", "sql_text", "verdicts"}


def test_imports_run_as_forks_run():
    """A process's file imports the one that it forks, never the one that forked it."""
    chain = ["zygote", "supervisor", "judge", "candidate"]
    for place, module in enumerate(chain):
        found = loaded(f"verifier.{module}")
        assert set(chain[place:]) <= found and not set(chain[:place]) & found
        assert not {"interpreter", "workers", "turns", "protocol", "sql"} & found


@pytest.mark.parametrize("how", ["a package", "a module"])
def test_the_other_interpreter_may_have_something_else_called_verifier(tmp_path, how):
    """Something installed there comes before this project on a path to which the project is only appended."""
    from verify import PythonJob, Verifier

    if how == "a package":
        (tmp_path / "verifier").mkdir()
    (tmp_path / ("verifier/__init__.py" if how == "a package" else "verifier.py")).write_text("1 / 0")
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    context = (
        "def generate_test_case(number): return 7, 14\n"
        "def test_execution(solution):\n"
        "    given, wanted = generate_test_case(1)\n    names = {'test_input': given}\n"
        "    exec('x = test_input\\n' + solution, names)\n    assert names['result'] == wanted\n"
    )
    answers = [
        "result = x * 2",
        f"import sys\nresult = 14 if {str(ROOT)!r} not in sys.path else 0",
        "result = 1",
    ]
    with Verifier(1, python=str(script), allow_unsandboxed=True) as verifier:
        verdicts = verifier.run([PythonJob(context, answer, 30.0) for answer in answers])
    assert [v.verdict for v in verdicts] == ["correct", "correct", "wrong"], verdicts


def test_the_command_runs_from_any_folder(tmp_path):
    job = '{"id": 1, "kind": "sql", "database": "none.sqlite", "gold": "SELECT 1", "answer": "SELECT 1"}\n'
    ended = subprocess.run(
        [sys.executable, "-S", str(ROOT / "verify.py")], input=job, capture_output=True, text=True,
        cwd=tmp_path, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert ended.returncode == 1 and f"no database at {tmp_path}" in ended.stdout, ended.stderr
