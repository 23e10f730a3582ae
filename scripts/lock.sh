#!/usr/bin/env bash
# Writes requirements/lock.txt anew: what pip resolves today for this project and its extras `dev`, beside the torch of
# requirements/torch.txt, in a clean environment; then uv.lock. `make lock` calls it; commit the result after `make test`
# has passed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/python" -m pip --disable-pip-version-check)
export DS_BUILD_OPS=0 DS_ACCELERATOR=cpu
echo "lock: resolving with $("$python" --version); a few minutes"
# shellcheck disable=SC2086  # several arguments in one variable are meant
"${pip[@]}" install -qq ${TORCH_PIP_ARGS:-} -r requirements/torch.txt setuptools wheel ninja
"${pip[@]}" install -qq --no-build-isolation -r requirements/torch.txt '.[dev]'
"${pip[@]}" check
{
    echo "# Every package but torch, pinned; installed with --no-deps after requirements/torch.txt, by \`make setup\`."
    echo "# Resolved on $("$scratch/venv/bin/python" --version) for 3.11 and newer. Written by \`make lock\`: change pyproject.toml, not this file."
    # pip itself is not pinned, the project is the checkout, and torch brings what belongs to its CUDA build. Tests
    # compare MDS shards with mosaicml-streaming, which is left out of the resolution: it asks for another torch; and so
    # is transformers, which asks for typer and what that brings, for a command line that is not used here; and so is
    # lm_eval, which asks for scikit-learn, nltk and thirty more, for metrics of some of its tasks.
    {
        echo "lm_eval==0.4.13"
        echo "mosaicml-streaming==0.13.0"
        echo "transformers==5.24.0"
        "${pip[@]}" freeze --all --exclude pip --exclude torch --exclude memformer-train |
            grep -v -i -E '^(nvidia-|cuda-|triton)' | sed 's/+[^ ]*$//'
    } | LC_ALL=C sort -f
} >"$scratch/lock.txt"
cp "$scratch/lock.txt" requirements/lock.txt
echo "lock: requirements/lock.txt holds $(grep -c == requirements/lock.txt) packages"
"${pip[@]}" install -qq uv
UV="$scratch/venv/bin/uv" scripts/lock_uv.sh
