"""The event log and everything that rides on it."""

import sys

if "structlog" not in sys.modules and "rich" not in sys.modules:
    # structlog takes rich along wherever it is installed, which costs every process a tenth of a second and five
    # megabytes. Only the command line, which imports it itself, has a use for it.
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog  # noqa: F401

    del sys.modules["rich"]
