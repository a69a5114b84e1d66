"""The object store: S3, the transfer of many small objects, and the folders of nights."""
