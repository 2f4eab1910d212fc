"""Style that a machine can see. Each failure names the place and what to do instead."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from .sources import at, functions, python_files, shown, tracked, tree

FILE_LINES_MAX = 500
"""The norm is 400; what is longer than this is two things in one file."""
FUNCTION_LINES_MAX = 70
"""The norm is 60."""
LONG_FILES_MAX = 6
"""How many files may be above the norm of 400 lines at all."""
PRODUCT = ("libs", "services")
WRITTEN = (".py", ".md", ".toml", ".html", ".css", ".js", ".sql")
"""What people write."""


def test_files_are_short() -> None:
    lengths = {shown(p): len(p.read_text().splitlines()) for p in python_files()}
    too_long = {name: n for name, n in lengths.items() if n > FILE_LINES_MAX}
    assert not too_long, "split them"
    above_norm = {name: n for name, n in lengths.items() if n > 400 and name.startswith(PRODUCT)}
    assert len(above_norm) <= LONG_FILES_MAX, f"the norm is 400 lines: {above_norm}"


def test_functions_are_short() -> None:
    too_long = [
        f"{at(path, node.lineno)} {node.name}: {lines} lines"
        for path in python_files()
        for node in functions(path)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not too_long, "split them"


def test_nothing_is_left_for_later() -> None:
    words = "|".join(a + b for a, b in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("HA", "CK")))
    word = re.compile(rf"\b({words})\b")
    left = [
        at(path, number)
        for path in tracked()
        if path.suffix in WRITTEN or path.name == "Makefile"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word.search(line)
    ]
    assert not left, "do it, or leave the note out"


BANNED_CALLS = {
    "uuid.uuid4": "orrery_events.ids.new_id or uuid7: they sort by time",
    "uuid4": "orrery_events.ids.new_id or uuid7: they sort by time",
    "datetime.utcnow": "datetime.now(timezone.utc)",
    "os.system": "subprocess with an argument list",
    "pickle.loads": "msgspec",
    "asyncio.get_event_loop": "asyncio.get_running_loop",
}


@pytest.mark.parametrize("path", python_files(*PRODUCT), ids=shown)
def test_banned_calls(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in BANNED_CALLS, f"{at(path, node.lineno)}: {name}; use {BANNED_CALLS[name]}"
            if name == "print":
                assert shown(path).startswith("libs/cli/"), f"{at(path, node.lineno)}: print; log, or raise"


def test_no_blocking_sleep_in_asynchronous_code() -> None:
    found = [
        at(path, node.lineno)
        for path in python_files()
        for function in functions(path)
        if isinstance(function, ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]
    assert not found, "await asyncio.sleep, or wait for a state"


def test_tests_wait_for_states_and_not_for_time() -> None:
    found = [
        f"{at(path, node.lineno)} {ast.unparse(node)}"
        for path in python_files("tests")
        if "/test_" in shown(path)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.sleep", "asyncio.sleep")
        and not (isinstance(node.args[0], ast.Constant) and node.args[0].value in (0, 3600))
        and "no state to wait for" not in path.read_text().splitlines()[node.lineno - 1]
    ]
    assert not found, (
        "tests/support/wait.py: eventually(...); where nothing may happen, say so: `# no state to wait for`"
    )


def test_sources_name_no_machine_and_no_registry() -> None:
    patterns = {
        "a path of somebody's machine": re.compile(r"(?<![\w.])/(root|home/\w+|work|Users)/\w"),
        "a host of a package registry": re.compile(r"https?://[\w.-]*(pypi|pythonhosted|npmjs|registry)[\w.-]*"),
    }
    found = [
        f"{at(path, number)}: {what}"
        for path in tracked()
        if path.suffix in (*WRITTEN, ".lock") or path.name in ("Makefile", "run") or path.name in ("Makefile", "run")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for what, pattern in patterns.items()
        if pattern.search(line)
    ]
    assert not found


INVARIANTS = 12
PURE = {"msgspec", "orrery_events", "__future__"}
PURE_MODULES = {"orrery_router.domain", "orrery_router.lines", "orrery_router.target"}
IMPURE_STDLIB = {"asyncio", "socket", "subprocess", "threading", "time", "random", "secrets", "os", "pathlib", "shutil"}


@pytest.mark.parametrize("path", [p for p in python_files("services") if p.name == "domain.py"], ids=shown)
def test_decisions_import_nothing_that_acts(path: Path) -> None:
    """`decide` and `evolve` take values and return values: no clock, no chance, no disk, no network."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            pure = top in PURE or name in PURE_MODULES
            allowed = pure or (top in sys.stdlib_module_names and top not in IMPURE_STDLIB)
            assert allowed, f"{at(path, node.lineno)} imports {name}: give the value as an argument"
    assert not [f for f in functions(path) if isinstance(f, ast.AsyncFunctionDef)], "nothing in it waits"


def test_public_things_say_what_they_are() -> None:
    silent = [
        f"{shown(path)}: no docstring"
        for path in python_files(*PRODUCT)
        if path.read_text().strip() and ast.get_docstring(tree(path)) is None and path.name != "__init__.py"
    ]
    assert not silent


def test_every_invariant_has_a_test_that_names_it() -> None:
    text = "".join(path.read_text() for path in python_files("tests"))
    named = {int(number) for number in re.findall(r"\bmark\.invariant\((\d+)\)", text)}
    missing = set(range(1, INVARIANTS + 1)) - named
    assert not missing, "ARCHITECTURE.md promises them"
