"""The tail's arithmetic, case by case."""

from __future__ import annotations

import msgspec
import pytest

from orrery_events.heartbeat import decode_heads, encode_heads
from orrery_events.tail import machine as module
from orrery_events.tail.machine import (
    BEHIND_GRACE_S,
    BUFFER_MAX,
    CHECK_S,
    CONSUMER_LOST_S,
    HEARTBEAT_LOST_S,
    POLL_S,
    REBUILD_BEHIND,
    Step,
)
from tests.support.tailed import FOLLOWED, Log, Tailed


@pytest.fixture
def log() -> Log:
    log = Log()
    for category in ("auth", "route", "server", "route", "auth", "route"):
        log.append(category)
    return log


def test_messages_in_order_are_applied_at_once(log: Log) -> None:
    tailed = Tailed(log)
    for row in log.rows:
        if row.category in FOLLOWED:
            assert tailed.deliver(row).apply == [row]
    assert tailed.machine.position == 6
    assert not tailed.reading
    assert tailed.machine.gaps == 0


def test_a_repeated_message_is_no_gap(log: Log) -> None:
    tailed = Tailed(log, position=6)
    assert tailed.deliver(log.rows[3]) == Step()
    assert tailed.machine.gaps == 0


def test_a_full_read_is_followed_by_the_next_at_once(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_LIMIT", 4)
    tailed = Tailed(log)
    tailed.deliver(log.rows[5])
    assert tailed.read().read
    assert not tailed.read().read
    assert tailed.applied == tailed.expected()


@pytest.mark.invariant(4)
def test_a_lost_event_of_another_category_is_noticed_at_the_next_message(log: Log) -> None:
    """The next message's own sequence fits; only the heads that it carries tell that `auth` 1 is missing."""
    tailed = Tailed(log)
    step = tailed.deliver(log.rows[1])
    assert step.apply == []
    assert step.read
    tailed.read()
    assert tailed.applied == tailed.expected()
    assert tailed.machine.gaps == 1


@pytest.mark.invariant(4)
def test_a_lost_end_is_revealed_by_the_heartbeat_after_a_grace(log: Log) -> None:
    tailed = Tailed(log)
    tailed.beat()
    tailed.tick(BEHIND_GRACE_S / 2)
    assert not tailed.reading, "the messages may still be on their way"
    tailed.tick(BEHIND_GRACE_S)
    assert tailed.wants_read()
    tailed.read()
    assert tailed.machine.position == 6
    assert tailed.machine.gaps == 1


def test_a_later_heartbeat_does_not_put_the_repair_off(log: Log) -> None:
    tailed = Tailed(log)
    tailed.beat()
    tailed.now += BEHIND_GRACE_S / 2
    log.append("route")
    tailed.beat()
    tailed.tick(BEHIND_GRACE_S / 2 + 0.01)
    assert tailed.reading


def test_only_one_read_runs_and_a_failed_one_waits(log: Log) -> None:
    tailed = Tailed(log)
    assert tailed.deliver(log.rows[3]).read
    assert not tailed.deliver(log.rows[5]).read
    assert not tailed.tick(0.1).read
    tailed.machine.on_read_failed(tailed.now)
    assert not tailed.tick(0.1).read
    assert tailed.tick(POLL_S * 1.5).read


def test_heartbeats_move_the_position_past_events_of_other_categories(log: Log) -> None:
    tailed = Tailed(log, position=6)
    log.append("server")
    tailed.beat()
    assert tailed.machine.position == 7
    assert tailed.machine.lag == 0


def test_without_heartbeats_postgres_is_polled_and_staleness_is_told(log: Log) -> None:
    tailed = Tailed(log, position=6)
    tailed.tick(HEARTBEAT_LOST_S + 0.1)
    assert tailed.machine.mode(tailed.now) == "stale"
    tailed.tick(POLL_S)
    assert tailed.polling
    log.append("route")
    tailed.poll()
    tailed.read()
    assert tailed.machine.mode(tailed.now) == "pg_poll"
    assert tailed.machine.position == 7
    tailed.beat()
    assert tailed.machine.mode(tailed.now) == "jetstream"
    tailed.now += HEARTBEAT_LOST_S * 2
    assert tailed.machine.mode(tailed.now) == "stale"


def test_without_a_connection_nobody_waits_for_heartbeats(log: Log) -> None:
    tailed = Tailed(log, position=6)
    tailed.beat()
    tailed.machine.on_bus_lost(tailed.now)
    tailed.tick()
    assert tailed.tick(POLL_S).poll


def test_the_head_is_checked_now_and_then_though_all_looks_well(log: Log) -> None:
    tailed = Tailed(log, position=6)
    for _ in range(int(CHECK_S * 1.3)):
        tailed.beat()
        tailed.tick(1.0)
    assert tailed.polling


def test_a_silent_consumer_is_made_anew_but_not_at_every_tick(log: Log) -> None:
    tailed = Tailed(log, position=6)
    tailed.now += CONSUMER_LOST_S + 0.1
    assert tailed.tick().consume
    assert not tailed.tick(0.1).consume
    tailed.now += CONSUMER_LOST_S
    tailed.machine.on_consumer_alive(tailed.now)
    assert not tailed.tick(0.1).consume


def test_a_stream_made_anew_means_a_new_consumer(log: Log) -> None:
    tailed = Tailed(log, position=6)
    assert not tailed.beat(created="c1").consume
    assert not tailed.beat(created="c1").consume
    assert tailed.beat(created="c2").consume


def test_an_older_epoch_is_ignored_and_a_newer_one_rebuilds(log: Log) -> None:
    tailed = Tailed(log, position=6)
    newer = log.truncated(3)
    older = Log(epoch=0)
    older.append("route")
    assert tailed.do(tailed.machine.on_message(older.rows[0], older.heads[1], 0.0)) == Step()
    assert tailed.do(tailed.machine.on_heartbeat(older.heartbeat(), 0.0)) == Step()
    assert not tailed.rebuild
    assert tailed.machine.on_message(newer.rows[0], newer.heads[1], 0.0).rebuild
    assert tailed.machine.on_heartbeat(newer.heartbeat(), 0.0).rebuild
    assert tailed.machine.on_log(2, 3, [], asked_at=0.0, now=0.0).rebuild


def test_a_log_that_changed_under_the_same_epoch_rebuilds(log: Log) -> None:
    tailed = Tailed(log, position=6)
    other = Log()
    for _ in range(8):
        other.append("route")
    assert "does not go on" in tailed.machine.on_rows(other.rows[6:], 0.0).rebuild


def test_what_postgres_does_not_have_is_dropped_in_the_end(log: Log) -> None:
    tailed = Tailed(log, position=6)
    bogus = log.truncated(0).append("route")
    bogus = msgspec.structs.replace(bogus, position=9, epoch=1)
    tailed.deliver(bogus, {"route": 77})
    for _ in range(10):
        if tailed.reading:
            tailed.read()
    assert not tailed.reading
    tailed.tick(0.1)
    assert not tailed.reading
    assert tailed.applied == []


def test_waiting_messages_are_bounded(log: Log) -> None:
    tailed = Tailed(log)
    for _ in range(BUFFER_MAX + 500):
        log.append("route")
    for row in log.rows[7:]:
        tailed.deliver(row)
    assert len(tailed.machine._buffer) == BUFFER_MAX
    while tailed.reading:
        tailed.read()
    tailed.settle(ticks=5)
    assert tailed.machine.position == log.position or tailed.rebuild == ""


def test_far_behind_a_rebuild_is_cheaper(log: Log) -> None:
    tailed = Tailed(log, position=6)
    step = tailed.machine.on_log(1, 6 + REBUILD_BEHIND + 1, [], asked_at=0.0, now=0.0)
    assert "behind" in step.rebuild


def test_a_foreign_message_makes_postgres_be_asked(log: Log) -> None:
    assert Tailed(log).machine.on_malformed(0.0).poll


def test_heads_survive_the_header() -> None:
    heads = {"auth": 1, "route": 2**60, "server": 0}
    assert decode_heads(encode_heads(heads)) == heads
    for text in ("", "auth", "auth=x", "auth=1,,"):
        with pytest.raises(ValueError, match=r"category|invalid literal"):
            decode_heads(text)
