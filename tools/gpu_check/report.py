"""A step's results as lines for a terminal, and as rows for the tables of benchmarks/README.md."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from statistics import mean, median
from typing import Any

from tools.gpu_check.results import DONE, FAILED

Document = Mapping[str, Any]


def lines(document: Document) -> Iterator[str]:
    """What was found, shortly."""
    machine = document["machine"]
    place = machine.get("gpu") or f"no GPU, {machine.get('cpu')}"
    torch = machine.get("packages", {}).get("torch")
    yield ""
    yield f"{document['step']} on {machine.get('cores')} cores, {place}, torch {torch}"
    if document["rehearsal"]:
        yield "REHEARSAL on the CPU: the figures say nothing"
    yield from _OF_STEP[document["step"]](document["parts"])
    for name, part in document["parts"].items():
        if part["status"] == FAILED:
            yield f"FAILED {name}: {part.get('said', '').strip().splitlines()[-1:]}"
    for name, reason in document["left_out"].items():
        yield f"{name} is left out: {reason}"
    if not document["complete"]:
        yield "The time was up before all was done: run the same step again, it goes on from here."


def _tests(parts: Mapping[str, Document]) -> Iterator[str]:
    counted = Counter(part["status"] for part in parts.values())
    yield ", ".join(f"{count} {status}" for status, count in counted.items())
    for name, part in parts.items():
        found = "; ".join(f"{key} {value}" for key, value in part.get("found", []))
        yield f"{name.rpartition('/')[2]}: {found}" if found else ""


def _train(parts: Mapping[str, Document]) -> Iterator[str]:
    runs: dict[str, list[Document]] = defaultdict(list)
    for name, part in parts.items():
        if part["status"] == DONE:
            runs[name.rpartition("/")[0]].append(part["result"])
    for model, found in runs.items():
        yield f"| {model}, {found[0]['source']} | seeds: {len(found)} | " + " | ".join(
            f"{key} {mean(values):.4g} ({min(values):.4g} to {max(values):.4g})"
            for key, values in _figures(found)
        )


def _figures(runs: list[Document]) -> Iterator[tuple[str, list[float]]]:
    for key in runs[0]["figures"]:
        values = [run["figures"][key] for run in runs]
        if all(isinstance(value, int | float) for value in values):
            yield key, values


def _score(parts: Mapping[str, Document]) -> Iterator[str]:
    done = {name: part["result"] for name, part in parts.items() if part["status"] == DONE}
    for workload in [name for name in done if "/" not in name]:
        names = (workload, f"{workload}/turn-2", f"{workload}/turn-3")
        turns = [done[name] for name in names if name in done]
        first = turns[0]
        yield f"{workload}: {first['images']:,} images ({first['source']})"
        yield from _rows(turns)
        for name, stage in first["stages"].items():
            yield f"| {name} alone | {stage['images_per_second']:,.0f} | {_busy([stage])} |"
        if first["bound"]:
            yield f"bound {first['bound']:,.0f} images/s, efficiency {first['efficiency']}"
        for kind in ("precision", "orm", "script"):
            if besides := done.get(f"{workload}/{kind}"):
                yield f"{workload}/{kind}, {besides['images']:,} images:"
                yield from _rows([besides])
        for name, why in first.get("failed", {}).items():
            yield f"{name} failed: {why.strip().splitlines()[-1]}"


def _rows(turns: list[Document]) -> Iterator[str]:
    """Each contender's median rate over turns, and how busy the GPU was."""
    rows: dict[str, list[Document]] = defaultdict(list)
    for turn in turns:
        for row in turn["rows"]:
            rows[row["name"]].append(row)
    for name, passes in rows.items():
        rates = [row["images_per_second"]["median"] for row in passes]
        yield (
            f"| {name} | {median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | "
            f"{median(row['cpu_seconds_per_1000'] for row in passes):.2f} | {_busy(passes)} |"
        )


def _busy(passes: list[Document]) -> str:
    shares = [row["gpu_busy_percent"] for row in passes if "gpu_busy_percent" in row]
    return f"{median(shares):.0f} % busy" if shares else "-"


_OF_STEP = {"tests": _tests, "train": _train, "score": _score}
