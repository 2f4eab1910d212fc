"""What a process asks of its folders before it begins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orrery_runtime.errors import StartupError
from orrery_runtime.startup import require_writable

TOGETHER = 8
OFTEN = 100


def test_processes_that_start_together_do_not_disturb_each_other_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "run"

    def start() -> None:
        for _ in range(OFTEN):
            require_writable(folder, "run_dir")

    with ThreadPoolExecutor(TOGETHER) as processes:
        for started in [processes.submit(start) for _ in range(TOGETHER)]:
            started.result()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=rf"cannot write to {tmp_path}/file/run .*another run_dir"):
        require_writable(tmp_path / "file" / "run", "run_dir")
