"""`python -m orrery_spawner.jupyterlab`: JupyterLab, ready in a third of the time.

Two things that JupyterLab does while it is being imported, and that nobody who runs it needs, are left out:

- jsonschema's optional check of internationalised URLs builds a parser at import (1.3 of 2.4 s measured). Without the
  package jsonschema skips that check, as it does wherever the package is not installed.
- Where Node.js is installed, `yarn config` is run to learn the registry for building extensions from source (0.4 s).
  The default registry is taken instead; `jupyter lab build` in a terminal is not affected.

And one that every newcomer would have to click away: whether JupyterLab may fetch news. Who wants it enables
`@jupyterlab/apputils-extension:announcements` again.

Kernels and terminals are processes of their own and see nothing of this. Works with any JupyterLab ≥ 4; should these
two places move, the start is slower and nothing else changes.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

CONFIG = Path(__file__).with_name("jupyter_config")


def main() -> int:
    """Becomes JupyterLab with the arguments of the command line."""
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # importing it raises ImportError from now on
    paths = [os.environ.get("JUPYTER_CONFIG_PATH", ""), str(CONFIG)]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, paths))
    try:
        commands = importlib.import_module("jupyterlab.commands")
        labapp = importlib.import_module("jupyterlab.labapp")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"JupyterLab cannot be started: {error}. Install it with `pip install orrery[jupyterlab]`.\n")
        return 1
    if hasattr(commands, "_yarn_config"):
        setattr(commands, "_yarn_config", lambda _logger: {"yarn config": {}, "npm config": {}})  # noqa: B010 (private)
    return int(labapp.main() or 0)


if __name__ == "__main__":
    sys.exit(main())
