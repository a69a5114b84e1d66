"""The figures of a workload: medians, efficiency, the JSON document and the printed table."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.scoring.runner import Pass

OURS = "nightscore"
# What the shard task does to each image; the listing is the work of another task.
_STAGES_OF_AN_IMAGE = ("fetch", "decode_resize", "host_to_device", "forward", "write")


def row(name: str, passes: Sequence[Pass]) -> dict[str, Any]:
    """A contender's row: medians of its passes, and the largest peak of memory."""
    rates = [one.rate for one in passes]
    found: dict[str, Any] = {
        "name": name,
        "images_per_second": {
            "median": round(median(rates), 1),
            "min": round(min(rates), 1),
            "max": round(max(rates), 1),
        },
        "cpu_seconds_per_1000": _cpu(passes),
        "peak_memory_mb": round(max(one.peak_memory_mb for one in passes)),
        "servers_cpu_seconds_per_1000": _servers(passes),
    }
    return found | _gpu(passes)


def _gpu(passes: Sequence[Pass]) -> dict[str, float]:
    """How a GPU was used, where there is one: median of the busy share, largest memory."""
    busy = [one.gpu_busy for one in passes if one.gpu_busy is not None]
    memory = [one.gpu_memory_mb for one in passes if one.gpu_memory_mb is not None]
    found = {"gpu_busy_percent": round(median(busy))} if busy else {}
    return found | ({"gpu_memory_mb": round(max(memory))} if memory else {})


def stage(passes: Sequence[Pass]) -> dict[str, float]:
    """A stage's figures: medians of its passes."""
    return {
        "images_per_second": round(median(one.rate for one in passes), 1),
        "cpu_seconds_per_1000": _cpu(passes),
        "servers_cpu_seconds_per_1000": _servers(passes),
        **_gpu(passes),
    }


def _cpu(passes: Sequence[Pass]) -> float:
    return round(median(one.cpu_seconds_per_1000 for one in passes), 4)


def _servers(passes: Sequence[Pass]) -> float:
    return round(median(1000 * p.servers_cpu_seconds / max(p.images, 1) for p in passes), 4)


def bound(stages: Mapping[str, Mapping[str, float]], device: str, cores: int) -> float:
    """Images per second that the stages allow.

    On a GPU machine the slowest stage alone, as the others can run beside it. On the CPU all
    stages share the cores: cores / the sum of their CPU seconds per image.
    """
    used = [stages[name] for name in _STAGES_OF_AN_IMAGE if name in stages]
    if device == "cuda":
        return min(one["images_per_second"] for one in used)
    return 1000 * cores / sum(one["cpu_seconds_per_1000"] for one in used)


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The table for a terminal."""
    machine = document["machine"]
    device = machine["gpu"] or "no GPU"
    yield (
        f"{document['workload']}: {document['images']:,} images ({document['source']}, "
        f"{document['mean_kb']:.1f} kB each), {document['flagged']} flagged; "
        f"{document['turns']} turns, {document['date']}"
    )
    yield (
        f"{machine['cores']} cores of {machine['cpu']} ({machine['isa']}), {device}, "
        f"torch {machine['packages'].get('torch')}; S3 and Postgres on the same cores"
    )
    yield ""
    yield f"{'':18}{'images/s':>9}{'min .. max':>18}{'CPU-s/1,000':>13}{'peak MB':>9}{'ratio':>7}"
    yield from _contenders(document["rows"])
    if document["stages"]:
        yield ""
        yield f"{'stage alone':18}{'images/s':>9}{'CPU-s/1,000':>31}{'of servers':>11}"
        for name, one in document["stages"].items():
            busy = f"   GPU busy {one['gpu_busy_percent']} %" if "gpu_busy_percent" in one else ""
            yield (
                f"{name:18}{one['images_per_second']:>9,.0f}{one['cpu_seconds_per_1000']:>31.3f}"
                f"{one['servers_cpu_seconds_per_1000']:>11.3f}{busy}"
            )
    if document["efficiency"] is not None:
        yield f"bound {document['bound']:,.0f} images/s; efficiency {document['efficiency']:.2f}"
    for name, found in document["agreement"].items():
        yield (
            f"{name} against {OURS}: {found['classes_differ']} classes and "
            f"{found['flags_differ']} flags differ, scores by at most {found['largest_score']:.2g}"
        )


def _contenders(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    ours = next((one["images_per_second"]["median"] for one in rows if one["name"] == OURS), None)
    for one in rows:
        rate = one["images_per_second"]
        spread = f"{rate['min']:,.0f} .. {rate['max']:,.0f}"
        ratio = f"{ours / rate['median']:.1f}" if ours else "-"
        busy = f"   GPU busy {one['gpu_busy_percent']} %" if "gpu_busy_percent" in one else ""
        yield (
            f"{one['name']:18}{rate['median']:>9,.0f}{spread:>18}"
            f"{one['cpu_seconds_per_1000']:>13.2f}{one['peak_memory_mb']:>9,}{ratio:>7}{busy}"
        )
