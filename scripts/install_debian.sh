#!/usr/bin/env bash
# usage: install_debian.sh NAME PACKAGE...
# Installs Debian packages; `make slurm` and `make images` call it. Needs root (or sudo without a password) and apt.
# No daemon is started. Quick when nothing is missing. NAME stands before every line that is printed.
set -euo pipefail
name=$1
shift
packages=("$@")

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "$name: ${packages[0]} $(dpkg-query -W -f '${Version}' "${packages[0]}") is installed"
    exit 0
fi
command -v apt-get >/dev/null || { echo "$name: error: no apt-get here; install ${missing[*]} yourself" >&2; exit 1; }
as_root=()
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || { echo "$name: error: run as root: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo -n)
fi

# Debian starts the daemons of a package that is installed, unless this file says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi
echo "$name: installing ${missing[*]}"
timeout 120 "${as_root[@]}" apt-get update -qq || echo "$name: apt-get update failed; using the lists there are" >&2
timeout 300 "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "$name: ${packages[0]} $(dpkg-query -W -f '${Version}' "${packages[0]}") installed"
