"""Imports structlog without rich.

structlog takes rich along wherever it is installed, for tracebacks in colour that nobody sees in a service's log; it
would cost every process a tenth of a second and five megabytes. Only the command line, which imports it itself, has a
use for it.
"""

import sys

if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
