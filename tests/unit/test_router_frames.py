"""Where a WebSocket's frames end, however they come in pieces."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from orrery_router.dataplane.frames import Frames
from orrery_router.dataplane.limits import FRAMES_PER_PIECE_MAX

LENGTHS = st.sampled_from([0, 1, 5, 124, 125, 126, 127, 128, 300, 65535, 65536, 70000])


def frame(length: int, *, opcode: int = 2, masked: bool = False, final: bool = True) -> bytes:
    """A frame as RFC 6455 §5.2 has it. Its body looks like frames itself."""
    mask = 0x80 if masked else 0
    first = bytes([(0x80 if final else 0) | opcode])
    if length < 126:
        head = first + bytes([mask | length])
    elif length < 65536:
        head = first + bytes([mask | 126]) + length.to_bytes(2, "big")
    else:
        head = first + bytes([mask | 127]) + length.to_bytes(8, "big")
    return head + (b"mask" if masked else b"") + (b"\x82\x01\x88" * (length // 3 + 1))[:length]


FRAMES = st.builds(frame, LENGTHS, opcode=st.sampled_from([0, 1, 2, 9, 10]), masked=st.booleans(), final=st.booleans())


@given(st.lists(FRAMES, max_size=12), st.lists(st.integers(1, 80_000), max_size=40))
def test_ends_of_frames_are_known_wherever_the_bytes_are_cut(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(sent)
    ends = {0, *itertools.accumulate(len(one) for one in sent)}
    places = sorted({0, *(cut % (len(stream) + 1) for cut in cuts), len(stream)})
    frames = Frames()
    assert frames.between
    for begin, end in itertools.pairwise(places):
        frames.feed(stream[begin:end])
        assert frames.between == (end in ends), (begin, end)


@given(st.lists(FRAMES, max_size=3))
def test_byte_by_byte(sent: list[bytes]) -> None:
    stream = b"".join(sent)[:2000]
    ends = {0, *itertools.accumulate(len(one) for one in sent)}
    frames = Frames()
    for at in range(len(stream)):
        frames.feed(stream[at : at + 1])
        assert frames.between == (at + 1 in ends), at


def test_nothing_goes_after_a_close() -> None:
    frames = Frames()
    frames.feed(frame(5) + frame(2, opcode=8))
    assert not frames.between
    frames.feed(frame(5))
    assert not frames.between


def test_who_sends_frames_without_end_is_not_followed() -> None:
    frames = Frames()
    for times, followed in ((FRAMES_PER_PIECE_MAX, True), (FRAMES_PER_PIECE_MAX + 1, False), (1, False)):
        frames.feed(frame(0) * times)
        assert frames.between == followed
