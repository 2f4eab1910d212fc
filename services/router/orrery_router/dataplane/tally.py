"""How many requests were answered, and how fast: counted in plain integers, made into metrics when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
CODE_CLASSES: Final = ("0xx", "1xx", "2xx", "3xx", "4xx", "5xx")


class Tally:
    """Counts of one process. prometheus_client's own counters cost a request as much as its routing does."""

    def __init__(self) -> None:
        self.requests: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(CODE_CLASSES))
        """By kind of the target and first digit of the status."""
        self.buckets = [[0] * (len(BUCKETS_S) + 1) for _ in CODE_CLASSES]
        self.sums_s = [0.0] * len(CODE_CLASSES)
        COUNTED.tallies.append(self)

    def add(self, code_class: int, kind: str, duration_s: float) -> None:
        """`duration_s`: negative if how long it took is not to be counted."""
        self.requests[kind][code_class] += 1
        if duration_s >= 0.0:
            self.buckets[code_class][bisect_left(BUCKETS_S, duration_s)] += 1
            self.sums_s[code_class] += duration_s


class Counted(Collector):
    """The metrics of every tally of this process."""

    def __init__(self) -> None:
        self.tallies: list[Tally] = []

    def describe(self) -> Iterator[Metric]:
        yield from _families()

    def collect(self) -> Iterator[Metric]:
        requests, durations = _families()
        for tally in self.tallies:
            for kind, counts in tally.requests.items():
                for name, count in zip(CODE_CLASSES, counts, strict=True):
                    if count:
                        requests.add_metric([name, kind], count)
            for name, counts, sum_s in zip(CODE_CLASSES, tally.buckets, tally.sums_s, strict=True):
                if any(counts):
                    durations.add_metric([name], _cumulative(counts), sum_s)
        yield requests
        yield durations


def _families() -> tuple[CounterMetricFamily, HistogramMetricFamily]:
    return (
        CounterMetricFamily("orrery_router_requests", "Requests answered.", labels=["code_class", "kind"]),
        HistogramMetricFamily(
            "orrery_router_request_duration_seconds",
            "From a request's head to the end of its answer.",
            labels=["code_class"],
        ),
    )


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found


COUNTED: Final = Counted()
REGISTRY.register(COUNTED)
