"""The files by which spawners and servers know of each other."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orrery_spawner.drivers.launcher import write_json

TOGETHER = 8
OFTEN = 100


def test_a_file_written_by_threads_at_once_is_always_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"

    def write(number: int) -> None:
        for _ in range(OFTEN):
            write_json(path, {"number": number})
            assert json.loads(path.read_text())["number"] in range(TOGETHER)

    with ThreadPoolExecutor(TOGETHER) as threads:
        for written in [threads.submit(write, number) for number in range(TOGETHER)]:
            written.result()
    assert list(tmp_path.iterdir()) == [path]
