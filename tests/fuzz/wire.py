"""What a client sends, or what a server answers, as bytes that a fuzzer changes and that coverage guides.

    python -m tests.fuzz.wire requests|answers [libFuzzer's options] [corpus]

The seeds are the smuggling corpus. A case that breaks a property ends the run; libFuzzer keeps it in a file, and the
file's name as the only argument after the options shows it again.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["orrery_router"]):
    from tests.support.inprocess import Case, check_alike, check_forwarded, plane

from tests.support.smuggling import requests, responses, sequences
from tests.support.smuggling.answers import Broken, read_answers

LOOP = asyncio.new_event_loop()
REQUEST = b"GET /user/ada/x HTTP/1.1\r\nHost: x\r\n\r\n"
WORDS = {"{here}": "/user/ada/x", "{there}": "/user/bob/x", "{prefix}": "/user/ada", "{cookie}": "a=b"}


def try_requests(data: bytes) -> None:
    async def run() -> None:
        made = plane()
        half = len(data) // 2
        cases = []
        for pieces in ([data], [data], [data[:half], data[half:]]):
            case = Case(made)
            await case.send(pieces)
            check_forwarded(case, data)
            cases.append(case)
        check_alike(cases)

    LOOP.run_until_complete(run())


def try_answers(data: bytes) -> None:
    async def run() -> None:
        case = Case(plane())
        await case.send([REQUEST, REQUEST], data)
        case.servers_leave()
        await asyncio.sleep(0)
        try:
            read_answers(case.wire.sent, ["GET", "GET"])
        except Broken as broken:
            if not case.wire.closed or "nobody asked" in str(broken):
                raise

    LOOP.run_until_complete(run())


def seeds(what: str) -> list[bytes]:
    if what == "answers":
        return [reply.raw for reply in responses.REPLIES.values() if len(reply.raw) < 2000]
    probes = [probe for family in (requests.FAMILIES | sequences.FAMILIES).values() for probe in family.values()]
    texts = [probe.text for probe in probes if len(probe.text) < 2000]
    for word, value in WORDS.items():
        texts = [text.replace(word, value) for text in texts]
    return [text.encode("latin-1") for text in texts]


TARGETS: dict[str, Callable[[bytes], None]] = {"requests": try_requests, "answers": try_answers}


def main() -> None:
    program, what, *options = sys.argv
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(what)):
            (Path(folder) / f"{number:04}").write_bytes(seed)
        atheris.Setup([program, "-max_len=2048", "-timeout=20", *options, folder], TARGETS[what])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
