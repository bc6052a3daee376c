#!/bin/sh
# Put Debian's promtool into a directory (default var/bin, where the tests look) without installing or starting Prometheus.
set -eu
cd "$(dirname "$0")/../.."
target=${1:-var/bin}
mkdir -p "$target"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
(cd "$work" && apt-get download prometheus >/dev/null && dpkg -x prometheus_*.deb unpacked)
install -m 755 "$work/unpacked/usr/bin/promtool" "$target/promtool"
