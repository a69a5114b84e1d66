"""The command `capacity`: what so many images a night need."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ml.cli.console import Json, print_json, print_table, print_text

if TYPE_CHECKING:
    from ml.capacity.costs import Costs
    from ml.capacity.plan import Demand, Plan

app = typer.Typer()


@app.command()
def capacity(
    images_per_night: Annotated[
        int, typer.Option("--images-per-night", min=1, help="New images per night.")
    ],
    bytes_per_image: Annotated[
        int, typer.Option("--bytes", min=1, help="The size of an image's file in bytes.")
    ],
    stream: Annotated[
        str, typer.Option(help="Take the costs from this stream's nights; else defaults.")
    ] = "",
    hours: Annotated[
        float, typer.Option(min=0.1, max=24, help="In which a night has to be scored.")
    ] = 4.0,
    keep: Annotated[int, typer.Option(min=1, help="Nights whose rows are kept.")] = 365,
    json: Json = False,
) -> None:
    """Say what a number of images per night needs: workers, requests, rows, bytes.

    The costs are those of the stream's newest runs, where there are any. docs/capacity.md states
    what is measured, what is assumed, and how well it predicts.
    """
    from ml.capacity import costs, plan
    from ml.config.loading import configuration

    lookback = configuration().stream(stream).lookback_nights if stream else 3
    known = costs.read(stream, bytes_per_image)
    demand = plan.Demand(images_per_night, bytes_per_image, hours, lookback, keep)
    made = plan.make_plan(demand, known)
    if json:
        print_json({"demand": asdict(demand), "costs": asdict(known), "plan": asdict(made)})
        return
    _print(demand, known, made)


def _print(demand: "Demand", costs: "Costs", plan: "Plan") -> None:
    print_text(
        f"{demand.images:,} images of {_size(demand.bytes_per_image)} per night, within "
        f"{demand.hours:g} hours"
    )
    print_table(("cost", "value", "from"), _cost_rows(costs))
    print_table(("needed", "value"), _plan_rows(demand, costs, plan))


def _cost_rows(costs: "Costs") -> list[tuple[str, str, str]]:
    gpu = costs.gpu_images_per_second
    values = {
        "cpu_images_per_second": f"{costs.cpu_images_per_second:,.0f}",
        "gpu_images_per_second": f"{gpu:,.0f}" if gpu else "unknown",
        "shard_seconds": f"{costs.shard_seconds:.2f}",
        "outside_seconds_per_image": f"{costs.outside_seconds_per_image:.6f}",
        "models": str(costs.models),
        "rejected_share": f"{costs.rejected_share:.4f}",
        "heatmap_share": f"{costs.heatmap_share:.4f}",
        "image_row_bytes": f"{costs.image_row_bytes:.0f}",
        "prediction_row_bytes": f"{costs.prediction_row_bytes:.0f}",
        "rejection_row_bytes": f"{costs.rejection_row_bytes:.0f}",
        "manifest_row_bytes": f"{costs.manifest_row_bytes:.0f}",
    }
    return [(name.replace("_", " "), value, costs.sources[name]) for name, value in values.items()]


def _plan_rows(demand: "Demand", costs: "Costs", plan: "Plan") -> list[tuple[str, str]]:
    from ml.capacity.plan import GETS_PER_PREFIX

    return [
        ("hours on one worker", f"{plan.one_worker_s / 3600:,.2f}"),
        ("of these listing and counting", f"{plan.serial_s / 3600:,.2f}"),
        ("workers with CPUs", _count(plan.workers)),
        ("workers with a GPU", _count(plan.gpus, is_known=costs.gpu_images_per_second is not None)),
        ("shard_size", f"{plan.shard_size:,} ({plan.shards:,} shards)"),
        ("shards_per_task", f"{plan.shards_per_task:,}"),
        ("S3 LIST, GET per night", f"{plan.list_requests:,}, {plan.get_requests:,}"),
        ("S3 PUT, DELETE per night", f"{plan.put_requests:,}, {plan.delete_requests:,}"),
        ("S3 GET per second", f"{plan.gets_per_second:,.0f}"),
        (f"prefixes of {GETS_PER_PREFIX:,} GET per second", f"{plan.prefixes:,}"),
        ("read from S3 per night", _size(plan.bytes_read)),
        ("network", f"{plan.network_mbit_per_second:,.0f} Mbit/s"),
        ("Postgres rows per night", f"{plan.rows_per_night:,}"),
        ("Postgres per night, per year", f"{_size(plan.postgres_bytes_per_night)}, "
         f"{_size(plan.postgres_bytes_per_year)}"),
        (f"Postgres with {demand.keep_nights:,} nights", _size(plan.postgres_bytes_kept)),
        ("heat maps and reports per year", _size(plan.s3_bytes_per_year)),
        ("connections to Postgres", f"{plan.connections:,}"),
        ("memory of the workers", _size(plan.memory_bytes)),
        ("lock slots of Postgres", f"{plan.lock_slots:,}"),
    ]  # fmt: skip


def _count(number: int | None, *, is_known: bool = True) -> str:
    if not is_known:
        return "not measured"
    return "no number is enough" if number is None else f"{number:,}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"
