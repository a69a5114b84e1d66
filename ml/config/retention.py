"""The sections `retention` of `nightscore.yaml`: how long what a night leaves behind is kept.

A limit is a number of nights or days before today. Without one, things of the kind are kept for
ever. A stream or model overrides the limits key by key; `null` there keeps what the top level would
delete.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import Field

from ml.config.cron import Cron
from ml.config.section import Section

# Of a stream's nights. Heat maps and reports lie in S3, the others in Postgres.
NightKind = Literal["results", "manifests", "heatmaps", "reports"]
# All that a limit can be set for, in the order in which they are deleted.
KINDS = ("manifests", "results", "heatmaps", "reports", "snapshots", "versions")

Limit = Annotated[int | None, Field(ge=1, le=36_600)]
RetentionT = TypeVar("RetentionT", bound=Section)


class StreamRetention(Section):
    """How many nights of a stream are kept, by kind.

    Attributes:
        results: Nights of images, predictions and rejections.
        manifests: Nights of the lists of what each run had to score; never longer than `results`.
        heatmaps: Nights of heat maps; never longer than `results`.
        reports: Nights of report pages.
    """

    results: Limit = None
    manifests: Limit = None
    heatmaps: Limit = None
    reports: Limit = None

    def of(self, kind: NightKind) -> int | None:
        """Return the limit of a kind, in nights; None keeps it for ever.

        A manifest and a heat map belong to a result, so they go with it at the latest.
        """
        own: int | None = getattr(self, kind)
        if kind in ("manifests", "heatmaps") and self.results is not None:
            return self.results if own is None else min(own, self.results)
        return own


class ModelRetention(Section):
    """How many days a model's unused versions, and its runs in MLflow, are kept."""

    versions: Limit = None


class Retention(StreamRetention, ModelRetention):
    """The limits of all streams and models, and when the DAG `maintain` runs.

    Attributes:
        snapshots: Days that snapshots are kept that no version needs.
        schedule: When `maintain` runs (UTC); None for only by hand.
    """

    snapshots: Limit = None
    schedule: Cron | None = "0 12 * * *"


def overridden(base: RetentionT, own: Section) -> RetentionT:
    """Return limits with those that a stream or model sets itself, `null` among them."""
    return base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
