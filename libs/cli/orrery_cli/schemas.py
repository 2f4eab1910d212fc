"""The migrations of every schema of the database, in the order in which they are applied."""

from __future__ import annotations

from orrery_api.schema import MIGRATIONS as API
from orrery_auth.schema import MIGRATIONS as AUTH
from orrery_runtime.migrate import ES

LOCATIONS = (ES, AUTH, API)
