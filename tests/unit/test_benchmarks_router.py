"""What the router's benchmark says is what was measured: verdicts, wrk's words, Traefik's keys, medians."""

from __future__ import annotations

import pytest

from benchmarks.router import goals, page, run, traefik, wrk
from benchmarks.router.goals import CHP, Goal, outcome

WRK = """
Running 1s test @ http://127.0.0.1:1/
  Latency Distribution
     50%  345.00us
     99%    1.25ms
  20000 requests in 1.00s, 6.07MB read
Requests/sec:  19876.54
"""


def goal(bound: str, ratio: float) -> Goal:
    return Goal("requests", "requests/s", "per_s", CHP, bound, ratio)  # type: ignore[arg-type]


def test_at_least_is_met_from_the_ratio_on() -> None:
    assert outcome(goal("≥", 7), 700, 100, None, None).met
    short = outcome(goal("≥", 7), 350, 100, 1.0, 4.0)
    assert (short.met, short.missed_by, short.measured, short.by_cpu) == (False, 0.5, 3.5, 4.0)


def test_at_most_is_met_up_to_the_ratio() -> None:
    assert outcome(goal("≤", 0.1), 1, 10, None, None).met
    much = outcome(goal("≤", 0.1), 3, 10, None, None)
    assert (much.met, much.missed_by) == (False, 2.0)


def test_a_goal_without_both_figures_says_nothing() -> None:
    load = {"per_s": 10.0, "cpu_s_per_10000": 1.0}
    ours = {"same_heads_16": load}
    assert goals.outcomes({"requests": {"orrery": ours}}) == []
    both = goals.outcomes({"requests": {"orrery": ours, CHP: {"same_heads_16": {**load, "per_s": 2.0}}}})
    assert [(one.goal.peer, one.goal.bound, one.measured) for one in both] == [(CHP, "≥", 5.0), (CHP, "≤", 1.0)]


def test_every_row_that_has_goals_has_a_table() -> None:
    assert {goal.row for goal in goals.GOALS} == set(page.TABLES) == set(run.ROWS)


@pytest.mark.parametrize(("busy", "warned"), [(0.02, False), (0.9, True)])
def test_the_page_says_whether_the_machine_was_quiet(busy: float, warned: bool) -> None:
    row = {"measured": "2026-01-01", "rounds": 1, "seconds": 1, "busy_before": busy, "peers": {}}
    text = "\n".join(page.section({"versions": {}, "goals": [], "rows": {"connects": row}}))
    assert ("to be measured again: connects" in text) == warned
    assert f"{busy:.0%} busy" in text


def test_what_wrk_says_is_read() -> None:
    assert wrk.read(WRK, cpu_s=0.5, wall_s=1.0) == {
        "per_s": 19877,
        "p99_ms": 1.25,
        "cpu_s_per_10000": 0.25,
        "busy": 0.5,
    }


@pytest.mark.parametrize(
    "said", [WRK + "  Non-2xx or 3xx responses: 3\n", WRK + "  Socket errors: connect 0, read 1\n", "something else"]
)
def test_a_run_with_errors_is_no_measurement(said: str) -> None:
    with pytest.raises(RuntimeError):
        wrk.read(said, cpu_s=0.5, wall_s=1.0)


def test_medians_are_taken_at_every_place() -> None:
    rounds = [{"a": {"b": 1, "c": 1.0}}, {"a": {"b": 9, "c": 2.0}}, {"a": {"b": 2, "c": 9.0}}]
    assert run.median(rounds) == {"a": {"b": 2, "c": 2.0}}


def test_traefik_is_told_the_same_by_file_and_by_keys() -> None:
    told = traefik.dynamic([("/user/ada/s1/", "http://127.0.0.1:1")], {})
    assert traefik.flat(told) == {
        "traefik/http/routers/user-ada-s1/rule": "PathPrefix(`/user/ada/s1/`)",
        "traefik/http/routers/user-ada-s1/service": "user-ada-s1",
        "traefik/http/routers/user-ada-s1/entryPoints/0": "http",
        "traefik/http/services/user-ada-s1/loadBalancer/servers/0/url": "http://127.0.0.1:1",
        "traefik/http/services/user-ada-s1/loadBalancer/passHostHeader": "true",
    }
