"""Several processes' metrics on one page."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orrery_runtime.exposition import merged


def page(number: int, *, more: bool = False) -> str:
    registry = CollectorRegistry()
    Counter("orrery_plain", "Without labels.", registry=registry).inc(number)
    labelled = Counter("orrery_labelled", "With { and spaces.", ["path"], registry=registry)
    labelled.labels('/a {b="c"} d').inc(number * 10)
    Histogram("orrery_time", "A histogram.", buckets=(1, 2), registry=registry).observe(number)
    if more:
        Counter("orrery_more", "Only some have it.", registry=registry).inc(5)
    return generate_latest(registry).decode()


def test_every_sample_is_there_under_its_worker() -> None:
    text = merged(page(7), {"1": page(1), "2": page(2, more=True)})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == {"orrery_plain", "orrery_labelled", "orrery_time", "orrery_more"} | {
        f"orrery_{name}_created" for name in ("plain", "labelled", "time", "more")
    }
    plain = {s.labels.get("worker", ""): s.value for s in families["orrery_plain"].samples if s.name.endswith("_total")}
    assert plain == {"": 7, "1": 1, "2": 2}
    labelled = {
        (s.labels["path"], s.labels.get("worker", "")): s.value
        for s in families["orrery_labelled"].samples
        if s.name.endswith("_total")
    }
    assert labelled == {('/a {b="c"} d', worker): value for worker, value in (("", 70), ("1", 10), ("2", 20))}
    assert families["orrery_time"].type == "histogram"
    assert families["orrery_time"].documentation == "A histogram."
    assert [s.labels.get("worker") for s in families["orrery_more"].samples] == ["2"]
    assert text.count("# TYPE orrery_plain_total ") == 1
    assert merged(text, {}) == text
