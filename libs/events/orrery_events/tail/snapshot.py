"""A projection on disk, so that a process can begin while Postgres and NATS are both away.

The file is the projection's state at one position, followed by every event applied since: what a process knew when it
was killed, it knows when it starts again. Once the events outgrow the state, the file is written anew beside the old
one and takes its place.

    orrery snapshot 1\\n
    frame     header
    frame…    [section, items]: the state, in pieces
    frame     ["", []]: the state's end
    frame…    events applied since, one each

A frame is its length (4 bytes), a keyed BLAKE2b of it and of the frame before (16 bytes), and a msgpack body. Only
holders of the platform's key can write a file that is read; a state that is cut short is refused, an event that is cut
short ends the file. Nothing in it is secret: it is made of events, and no event holds a secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, Protocol

import msgspec

from ..errors import OrreryError
from ..projection import Projection
from ..recorded import Recorded

MAGIC: Final = b"orrery snapshot 1\n"
BYTES_MAX: Final = 512 * 2**20
"""A larger file is neither written nor read."""
ITEMS_AT_ONCE: Final = 200
"""Few enough that encoding them does not keep the event loop of the process waiting."""
PAUSE_S: Final = 0.0005
"""Between two pieces, so that the event loop gets its turn at once."""
LENGTH_BYTES: Final = 4
MAC_BYTES: Final = 16
SUFFIX: Final = ".snapshot"


class SnapshotRefused(OrreryError):
    """The file is not one that this process may begin with. It is replaced once Postgres is there."""


class Snapshotted(Projection, Protocol):
    """A projection that can be kept on disk."""

    SECTIONS: ClassVar[Mapping[str, Any]]
    """Name of each section → type of its items, as msgspec decodes it. New fields of an item need a default that is
    safe to assume; anything else is a new section's name."""

    def sections(self) -> Mapping[str, Sequence[Any]]:
        """The whole state as lists of immutable items, which are encoded later and elsewhere."""
        ...

    def restore(self, section: str, items: Sequence[Any]) -> None:
        """Takes items of a section into a fresh state; called in the order in which `sections` had them."""
        ...


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a state is of."""

    name: str
    categories: tuple[str, ...]
    log_id: str
    epoch: int
    position: int
    seqs: dict[str, int]
    """Category sequences at `position`."""


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held."""

    header: Header
    position: int
    seqs: dict[str, int]
    """At the last event."""
    events: list[Recorded]
    """Applied after the state, in order; not yet folded into it."""
    age_s: float
    """Since it was last known that nothing was missing."""
    path: Path


_encoder = msgspec.msgpack.Encoder()
_header = msgspec.msgpack.Decoder(Header)
_event = msgspec.msgpack.Decoder(Recorded)
_piece = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


class Chain:
    """Seals frames one after another."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._last = MAGIC

    def seal(self, body: bytes | memoryview) -> bytes:
        """The MAC of the next frame."""
        mac = hashlib.blake2b(self._last, key=self._key, digest_size=MAC_BYTES)
        mac.update(body)
        self._last = mac.digest()
        return self._last

    def frame(self, value: object) -> bytes:
        body = _encoder.encode(value)
        return len(body).to_bytes(LENGTH_BYTES, "big") + self.seal(body) + body


class SnapshotFile:
    """One process's file, by its path. All methods raise OSError."""

    def __init__(self, path: Path, key: bytes) -> None:
        """`key`: 32 bytes that all processes of the platform hold, and nobody else."""
        self.path = path
        self.bytes_written = 0
        self.state_bytes = 0
        self._key = key
        self._chain = Chain(key)
        self._out: BinaryIO | None = None
        self._fresh: tuple[Path, BinaryIO, Chain] | None = None
        self._writing = threading.Lock()

    def write_state(self, header: Header, sections: Mapping[str, Sequence[Any]]) -> None:
        """Writes a state beside the file, down to the disk; `take_over` puts it in its place. To be called in a thread.
        Raises SnapshotRefused for a state that is too large."""
        with self._writing:
            self.give_up()
            self._fresh = self._written(header, sections)

    def _written(self, header: Header, sections: Mapping[str, Sequence[Any]]) -> tuple[Path, BinaryIO, Chain]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, chain = self.path.with_name(f".{self.path.name}.fresh"), Chain(self._key)
        path.unlink(missing_ok=True)
        out = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb", buffering=0)
        try:
            written = out.write(MAGIC + chain.frame(header))
            for section, items in sections.items():
                for start in range(0, len(items), ITEMS_AT_ONCE):
                    written += out.write(chain.frame((section, items[start : start + ITEMS_AT_ONCE])))
                    _require_bounded(written)
                    time.sleep(PAUSE_S)
            out.write(chain.frame(("", ())))
            os.fsync(out.fileno())
        except BaseException:
            out.close()
            path.unlink(missing_ok=True)
            raise
        return path, out, chain

    def take_over(self, since: Iterable[Recorded]) -> None:
        """Puts the state just written in the file's place, with the events applied since."""
        if self._fresh is None:
            raise SnapshotRefused("no state was written")
        (path, out, chain), self._fresh = self._fresh, None
        try:
            self.state_bytes = os.fstat(out.fileno()).st_size
            self.bytes_written = self.state_bytes + (out.write(b"".join(map(chain.frame, since))) or 0)
            path.replace(self.path)
        except BaseException:
            out.close()
            raise
        self.close()
        self._out, self._chain = out, chain

    def add_all(self, events: Sequence[Recorded]) -> None:
        """Adds events. After an error the file is left as it is: its end is refused, its state is good."""
        if self._out is None or not events:
            return
        if self.bytes_written > BYTES_MAX + (BYTES_MAX >> 1):
            self.close()
            return
        frames = b"".join(map(self._chain.frame, events))
        try:
            self.bytes_written += self._out.write(frames)
        except OSError:
            self.close()
            raise

    def give_up(self) -> None:
        """Forgets the state just written."""
        if self._fresh is not None:
            path, out, _ = self._fresh
            self._fresh = None
            out.close()
            path.unlink(missing_ok=True)

    def proven(self, at: float) -> None:
        """Notes when it was last known that nothing was missing (Unix seconds)."""
        os.utime(self.path, (at, at))

    def sync(self) -> None:
        """Down to the disk, the folder's entry too."""
        for path in (self.path, self.path.parent):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def end(self) -> None:
        """Closes everything, once a thread that still writes a state is done."""
        with self._writing:
            self.give_up()
        self.close()

    def close(self) -> None:
        """No more events are added."""
        out, self._out = self._out, None
        if out is not None:
            with contextlib.suppress(OSError):
                out.close()


def _require_bounded(size: int) -> None:
    if size > BYTES_MAX:
        raise SnapshotRefused(f"the state is larger than {BYTES_MAX >> 20} MiB, which is not kept on disk")


def candidates(path: Path) -> list[Path]:
    """The file itself, then those of its siblings, the newest first: replicas of a service hold the same state."""
    try:
        others = [p for p in path.parent.iterdir() if p.suffix == SUFFIX and not p.name.startswith(".") and p != path]
        others.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    except OSError:
        others = []
    return [p for p in (path, *others) if p.is_file()]


def read(path: Path, key: bytes, *, name: str, categories: Sequence[str], state: Snapshotted) -> Restored:
    """Takes a file's state into `state`. Raises SnapshotRefused, saying why, and then `state` is no good; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if status.st_size > BYTES_MAX + (BYTES_MAX >> 1):
            raise SnapshotRefused("it is larger than any that is written")
        if file.read(len(MAGIC)) != MAGIC:
            raise SnapshotRefused("it is not a snapshot of this format")
        frames = _frames(memoryview(file.read()), Chain(key))
    try:
        header = _header.decode(next(frames, b""))
        if header.name != name or sorted(header.categories) != sorted(categories):
            raise SnapshotRefused(f"it is of {header.name!r}, not of {name!r} with the same categories")
        _take_state(frames, state)
    except msgspec.MsgspecError as error:
        raise SnapshotRefused(f"it is cut short, changed, or of another platform or release ({error})") from None
    events, seqs = [], dict(header.seqs)
    for body in frames:
        recorded = _event.decode(body)
        if recorded.epoch != header.epoch or recorded.category_seq != seqs.get(recorded.category, 0) + 1:
            break
        seqs[recorded.category] = recorded.category_seq
        events.append(recorded)
    position = events[-1].position if events else header.position
    age_s = max(0.0, time.time() - status.st_mtime)
    return Restored(header=header, position=position, seqs=seqs, events=events, age_s=age_s, path=path)


def _take_state(frames: Iterator[memoryview], state: Snapshotted) -> None:
    decoders = {section: msgspec.msgpack.Decoder(list[kind]) for section, kind in state.SECTIONS.items()}  # type: ignore[valid-type]
    while True:
        section, items = _piece.decode(next(frames, b""))
        if not section:
            return
        if section in decoders:
            state.restore(section, decoders[section].decode(items))


def _frames(data: memoryview, chain: Chain) -> Iterator[memoryview]:
    """The bodies of all frames up to the first that is not whole and genuine."""
    at, head = 0, LENGTH_BYTES + MAC_BYTES
    while at + head <= len(data):
        length = int.from_bytes(data[at : at + LENGTH_BYTES], "big")
        mac, body = data[at + LENGTH_BYTES : at + head], data[at + head : at + head + length]
        if len(body) != length or not hmac.compare_digest(chain.seal(body), mac):
            return
        yield body
        at += head + length
