"""Locks, documents and the Makefile say what is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks import report

from .sources import ROOT, shown, tracked


def test_the_locks_have_hashes_and_no_addresses() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        assert "://" not in text, f"{lock.name}: `make lock` writes no addresses"
        packages = [line for line in text.splitlines() if re.match(r"^[a-z0-9].*==", line)]
        assert packages
        for line in packages:
            assert line.endswith("\\"), f"{lock.name}: {line} has no hash"


def versions(lock: str) -> dict[str, str]:
    """Package to version."""
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    return {
        normal(name): version for name, version in re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==(\S+)", text, re.MULTILINE)
    }


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_locks_are_what_pyproject_asks_for() -> None:
    """Offline: every requirement is locked at a version that it allows. `make lock` mends it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    run = [*project["project"]["dependencies"], *extras["embedded"], *extras["jupyterlab"]]
    wanted = {
        "run": run,
        "build": groups["build"],
        "dev": [*run, *groups["build"], *(r for r in groups["dev"] if isinstance(r, str))],
        "bench": groups["bench"],
        "uv": ["uv"],
    }
    for name, requirements in wanted.items():
        locked = versions(name)
        for requirement in map(Requirement, requirements):
            version = locked.get(normal(requirement.name))
            assert version, f"{name}.lock lacks {requirement.name}: make lock"
            assert version in requirement.specifier, f"{name}.lock has {requirement.name} {version}: make lock"
    assert versions("run").items() <= versions("dev").items(), "dev.lock must hold run.lock as it is: make lock"


def test_every_link_in_the_documents_leads_somewhere() -> None:
    link = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
    quoted = re.compile(r"`([\w./-]+\.(?:md|py|toml|sql|yaml|lock))(?::[^`]*)?`")
    broken = []
    for path in (p for p in tracked() if p.suffix == ".md"):
        text, bases = path.read_text(), (ROOT, path.parent, *package_roots())
        targets = [t.partition("#")[0] for t in link.findall(text) if not re.match(r"[a-z]+:|#", t)]
        broken += [f"{shown(path)}: {target}" for target in targets if not (path.parent / target).exists()]
        # A bare file name stands for one of many (`domain.py`); a path must exist.
        paths = [name for name in quoted.findall(text) if "/" in name]
        broken += [f"{shown(path)}: {name}" for name in paths if not any((base / name).exists() for base in bases)]
    assert not broken


def package_roots() -> list[Path]:
    return [
        p for pattern in ("libs/*", "services/*", "services/*/*", "libs/*/*") for p in ROOT.glob(pattern) if p.is_dir()
    ]


def test_make_alone_lists_every_command() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    described = set(re.findall(r"^([a-z-]+):.*## \w", text, re.MULTILINE))
    assert targets == described
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == targets


def test_the_performance_page_shows_what_was_measured() -> None:
    page = ROOT / "docs" / "performance.md"
    assert page.read_text() == report.page(), "python -m benchmarks.report --write"
