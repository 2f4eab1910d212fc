"""Builds `.venv` from the hashed locks, with nothing but Python 3.11 and a package registry.

    python3 requirements/install.py run|dev

`run` is what `make run` needs, `dev` what `make test` needs on top. Does nothing when `.venv` is up to date. uv is
fetched first because it installs several times faster; where it cannot be had, pip does the same from the same locks.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".orrery-installed.json"
LOCKS = {tier: ROOT / "requirements" / f"{tier}.lock" for tier in ("run", "dev")}
BUILD_LOCK = ROOT / "requirements" / "build.lock"
UV_LOCK = ROOT / "requirements" / "uv.lock"
PYTHON_MIN = (3, 11)


class InstallError(Exception):
    """One sentence that names the next step."""


def main(tier: str) -> int:
    if tier not in LOCKS:
        raise InstallError(f"usage: python3 {sys.argv[0]} {'|'.join(LOCKS)}")
    if sys.version_info < PYTHON_MIN:
        found = sysconfig.get_python_version()
        raise InstallError(f"Python 3.11 or newer is needed and this is {found}: install it, or set PYTHON=/path/to/it")
    wanted = fingerprint(tier)
    if installed().get(tier) == wanted:
        return 0
    say(f"Installing into {VENV.name} ({LOCKS[tier].name})")
    make_venv()
    pip("install", "--require-hashes", "-r", str(BUILD_LOCK))
    if not install_with_uv(tier):
        pip("install", "--require-hashes", "-r", str(LOCKS[tier]))
    # hatchling comes from the lock above, so nothing is fetched here.
    pip("install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))
    compile_all()
    # dev.lock holds everything that run.lock does.
    tiers = ("run", "dev") if tier == "dev" else ("run",)
    STAMP.write_text(json.dumps({name: fingerprint(name) for name in tiers}) + "\n")
    return 0


def fingerprint(tier: str) -> str:
    """Changes whenever something must be installed anew."""
    digest = hashlib.sha256(sys.version.encode())
    for file in (LOCKS[tier], BUILD_LOCK, ROOT / "pyproject.toml"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def installed() -> dict[str, str]:
    """Tier → fingerprint of what `.venv` holds; empty when it is missing or broken."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and PYTHON.exists() else {}


def make_venv() -> None:
    if PYTHON.exists() and works():
        return
    try:
        import ensurepip  # noqa: F401, PLC0415 (asked for, not used)
    except ImportError:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise InstallError(
            f"this Python cannot make virtual environments (it lacks ensurepip): install its venv package, "
            f"e.g. `apt-get install python{version}-venv`, and try again"
        ) from None
    run([sys.executable, "-m", "venv", "--clear", str(VENV)], "the virtual environment could not be made")


def works() -> bool:
    """False when the Python that `.venv` was made with has gone, or has no pip."""
    return subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def install_with_uv(tier: str) -> bool:
    """False when uv cannot be had or fails, whatever the reason: pip is slower and always there."""
    uv = VENV / "bin" / "uv"
    if not uv.exists():
        command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--require-hashes"]
        done = subprocess.run([*command, "-r", str(UV_LOCK)], capture_output=True, check=False)
        if done.returncode != 0 or not uv.exists():
            return False
    command = [str(uv), "pip", "install", "--python", str(PYTHON), "--require-hashes", "-r", str(LOCKS[tier])]
    done = subprocess.run(command, env={**pip_settings_for_uv(), **os.environ}, capture_output=True, check=False)
    return done.returncode == 0


def compile_all() -> None:
    """Where Python may keep no bytecode (PYTHONDONTWRITEBYTECODE), every process would compile everything that it
    imports, which takes longer than all else that it does at start: so that is done once, here."""
    if sys.dont_write_bytecode:
        folders = [str(VENV / "lib"), str(ROOT / "libs"), str(ROOT / "services")]
        command = [str(PYTHON), "-m", "compileall", "-q", "-j", "0", *folders]
        # Packages may hold files that are for other Pythons.
        subprocess.run(command, capture_output=True, check=False)


def pip_settings_for_uv() -> dict[str, str]:
    """uv does not read pip's configuration; where packages come from is the same for both.

    Like pip, it then looks at all places for each package: the hashes in the locks say which file is the right one.
    """
    done = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "cert": "SSL_CERT_FILE",
    }
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        name = names.get(key.rpartition(".")[2])
        if name:
            found[name] = value.strip("'\"").replace("\\n", " ").strip()
    return found


def pip(*arguments: str) -> None:
    run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments], "pip failed", "--quiet")


def run(command: list[str], what: str, *more: str) -> None:
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise InstallError(f"{what}: see above; a package registry must be reachable")


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
    except InstallError as error:
        say(f"install: {error}")
        sys.exit(1)
