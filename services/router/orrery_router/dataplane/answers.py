"""Heads of responses that need not be looked at again to know what goes on of them, and where the response ends."""

from __future__ import annotations

from typing import Final

import msgspec


class KnownAnswer(msgspec.Struct, frozen=True, gc=False):
    """The head of a response to a GET, which follows from nothing but itself: it is the same for every client."""

    head: bytes
    """As it comes, with its empty line."""
    size: int
    """Of the whole response, in bytes."""
    status: int
    lines: bytes
    """As it goes on, with its empty line, but for what a listener adds (`Arrival.marked`); the same object as `head`
    where that is the same."""


NO_ANSWER: Final = KnownAnswer(b"\n", -1, 0, b"")


def known_answer(head: bytes, status: int, lines: bytes, length: int) -> KnownAnswer | None:
    """None: what goes on of it depends on who answers. `head`, `lines`: without the empty line; `length`: of the body
    that came with it, which was all of it."""
    if b"\nset-cookie" in head.lower():
        return None
    head, lines = head + b"\r\n\r\n", lines + b"\r\n"
    return KnownAnswer(head, len(head) + length, status, head if lines == head else lines)
