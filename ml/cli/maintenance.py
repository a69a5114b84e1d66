"""The command that deletes what has passed its limit: `prune`."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ml.cli.console import Json, err, print_json, print_message, print_table
from ml.cli.progress import show_progress

if TYPE_CHECKING:
    from ml.retention.candidate import Candidate
    from ml.retention.prune import Outcome, Planned

app = typer.Typer()

_COLUMNS = ("kind", "stream", "deletions", "first night", "last night", "items", "bytes")


@app.command()
def prune(
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; else only list it.")] = False,
    stream: Annotated[
        str | None, typer.Option(help="Only what belongs to this stream alone.")
    ] = None,
    json: Json = False,
) -> None:
    """List what has passed its limit in nightscore.yaml, and delete it with --delete.

    Safe to interrupt and to repeat. No night waits for it.
    """
    from datetime import UTC, datetime

    from ml.config.loading import configuration
    from ml.retention import prune as pruning

    limits = pruning.policy(configuration())
    planned = list(pruning.plan(limits, datetime.now(UTC).date(), stream=stream))
    outcomes = _delete(planned) if delete else []
    if json:
        print_json(_document(planned, outcomes))
    else:
        _print(planned, outcomes)
    if any(item.error for item in planned) or any(item.state == "failed" for item in outcomes):
        raise typer.Exit(1)


def _delete(planned: "Sequence[Planned]") -> "list[Outcome]":
    import getpass

    from ml.retention.prune import delete_all

    outcomes = []
    with show_progress() as progress:
        for outcome in delete_all(planned, getpass.getuser()):
            outcomes.append(outcome)
            done = f"{len(outcomes):,} of {len(planned):,}, last {outcome.candidate.name}"
            progress.update("deleting", done)
    return outcomes


def _print(planned: "Sequence[Planned]", outcomes: "Sequence[Outcome]") -> None:
    if not planned:
        print_message("Nothing has passed its limit.")
        return
    found = [item.candidate for item in planned if not item.error]
    if found:
        print_table(_COLUMNS, _summary(found))
    for item in planned:
        if item.error:
            err.print(f"{item.candidate.name}: {item.error}", style="red", markup=False)
    if not outcomes:
        print_message("Nothing was deleted. `nightscore prune --delete` deletes the above.")
        return
    states = Counter(outcome.state for outcome in outcomes)
    for outcome in outcomes:
        if outcome.state != "deleted":
            print_message(f"{outcome.state}: {outcome.candidate.name}: {outcome.detail}")
    print_message(
        f"{states['deleted']} deleted, {states['kept']} kept, {states['failed']} failed; "
        "reporting.maintenance has the record."
    )


def _summary(candidates: "Sequence[Candidate]") -> list[list[Any]]:
    """One row per kind and stream, in the order of the candidates."""
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault((candidate.kind, candidate.stream or ""), []).append(candidate)
    return [
        [
            kind,
            stream,
            len(group),
            min((item.night for item in group if item.night), default=None),
            max((item.night for item in group if item.night), default=None),
            sum(item.items for item in group),
            sum(item.bytes for item in group),
        ]
        for (kind, stream), group in groups.items()
    ]


def _document(planned: "Sequence[Planned]", outcomes: "Sequence[Outcome]") -> dict[str, Any]:
    """What `--json` prints: each candidate with its fields and, after a deletion, its state."""
    states: Any = [vars(outcome) for outcome in outcomes] or [{} for _ in planned]
    names = ("kind", "name", "stream", "night", "items", "bytes", "reason")
    return {
        "deleted": bool(outcomes),
        "candidates": [
            {name: getattr(item.candidate, name) for name in names}
            | {"error": item.error or state.get("detail", ""), "state": state.get("state", "")}
            for item, state in zip(planned, states, strict=True)
        ],
    }
