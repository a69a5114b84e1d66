#!/bin/sh
# As the real image: not as root, and reachable from other containers.
exec setpriv --reuid=valkey --regid=valkey --init-groups "$@" --bind '*' --protected-mode no
