"""Data sets, nights and snapshots in S3, and how images get there."""
