#!/usr/bin/env bash
# Writes uv.lock anew, with the pins of requirements/ for all that they have. `make lock` calls it; alone it is for a
# change of pyproject.toml or of a pin by hand. It needs uv (`pip install uv`), or the path of one in UV.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
command -v "$uv" >/dev/null || { echo "lock: error: found no $uv (pip install uv)" >&2; exit 2; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# First with the pins as constraints, which uv would write into the lock; then without them: uv keeps the versions of a
# lock that it finds.
cp README.md LICENSE setup.py "$scratch"
awk '{ print } $0 == "[tool.uv]" {
    print "constraint-dependencies = ["
    while ((getline pin < "/dev/stdin") > 0) if (pin ~ /==/) print "    \"" pin "\","
    print "]"
}' pyproject.toml < <(cat requirements/torch.txt requirements/lock.txt) >"$scratch/pyproject.toml"
"$uv" lock --quiet --directory "$scratch"
cp pyproject.toml "$scratch/pyproject.toml"
"$uv" lock --quiet --directory "$scratch"
cp "$scratch/uv.lock" uv.lock
echo "lock: uv.lock holds $(grep -c '^\[\[package\]\]' uv.lock) packages"
