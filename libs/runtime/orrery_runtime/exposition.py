"""Several processes' metrics as one page in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Mapping


def merged(own: str, others: Mapping[str, str]) -> str:
    """`own` as it is, and each of `others` with its key as the label `worker`. Lines of one metric stand together."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, text in (("", own), *others.items()):
        family = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                known = heads.setdefault(family, [])
                if len(known) < 2 and line.split(" ", 2)[1] not in {k.split(" ", 2)[1] for k in known}:
                    known.append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(_labelled(line, worker) if worker else line)
    lines = [line for family, found in samples.items() for line in (*heads.get(family, ()), *found)]
    return "".join(f"{line}\n" for line in lines)


def _labelled(sample: str, worker: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'
