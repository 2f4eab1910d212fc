"""Runs `package.module:function` as a process: `python -m orrery_cli.supervisor.target orrery_api.app:main`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable


def resolve(target: str) -> Callable[[], int]:
    module, _, function = target.partition(":")
    found: Callable[[], int] = getattr(importlib.import_module(module), function)
    return found


if __name__ == "__main__":
    sys.exit(resolve(sys.argv[1])())
