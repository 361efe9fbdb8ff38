#!/bin/sh
# Installs the programs of other makers that `accounts` needs, from the distribution's own packages:
# nginx (the upstream that counts), wrk (HTTP/1.1) and h2load (HTTP/2). Needs root, or sudo.
set -eu
as_root=
[ "$(id -u)" -eq 0 ] || as_root=sudo
$as_root apt-get update
DEBIAN_FRONTEND=noninteractive $as_root apt-get install --yes --no-install-recommends nginx wrk nghttp2-client
