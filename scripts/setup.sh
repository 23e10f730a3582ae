#!/usr/bin/env bash
# Builds the virtual environment .venv of this checkout; `make setup` calls it. Quick when nothing has changed.
#
#   PYTHON=python3.12     the interpreter to build from (default python3; 3.10 or newer)
#   TORCH_PIP_ARGS=...    further pip arguments for torch alone, for instance --extra-index-url with the index of
#                         another build of it; without them, pip's own configuration decides (on Linux, PyPI's torch
#                         is the CUDA build, which runs on a machine without a GPU too)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
inputs=(requirements/torch.txt requirements/lock.txt pyproject.toml setup.py scripts/setup.sh)

if command -v flock >/dev/null; then  # `make train` beside `make test`: the second waits for the first
    exec 9<requirements/lock.txt
    flock 9
fi

# The path is part of it: a copied or moved checkout would otherwise go on importing the files of the old one.
fingerprint=$({ cat "${inputs[@]}"; pwd; echo "${TORCH_PIP_ARGS:-}"; } | cksum)
if [ "$(cat .venv/.ready 2>/dev/null)" = "$fingerprint" ] && .venv/bin/python -c '' 2>/dev/null; then
    echo "setup: .venv is up to date"
    exit 0
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
    found=$("$python" --version 2>/dev/null) || found="no program $python"
    echo "setup: error: found ${found%%$'\n'*}; Python 3.10 or newer is needed" \
        "(name one with PYTHON=, as in: make setup PYTHON=python3.12)" >&2
    exit 2
}
started=$SECONDS
if [ -e .venv/.incomplete ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "setup: creating .venv with $("$python" --version)"
    rm -rf .venv
    mkdir .venv
    touch .venv/.incomplete  # whatever ends this script early, the next one starts again from here
    "$python" -m venv .venv || {
        echo "setup: error: no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    }
else
    rm -f .venv/.ready
    touch .venv/.incomplete
fi

# --no-compile: bytecode is written when a module is first imported, which few of torch's 2,000 ever are.
install=(.venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile --prefer-binary)
echo "setup: installing torch and the build tools"
# shellcheck disable=SC2086  # several arguments in one variable are meant
"${install[@]}" ${TORCH_PIP_ARGS:-} -r requirements/torch.txt -c requirements/lock.txt setuptools wheel ninja

# Without build isolation DeepSpeed finds the torch above. It compiles nothing now (DS_BUILD_OPS=0), and told that the
# accelerator is a CPU it does not ask for a CUDA toolkit either; at run time it looks for GPUs again.
export DS_BUILD_OPS=0 DS_ACCELERATOR=cpu
if .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: installing DeepSpeed, the other pinned packages and the project"
    "${install[@]}" --no-build-isolation --no-deps -r requirements/lock.txt -e .
else
    echo "setup: installing DeepSpeed, the other packages (not pinned: the lock is for Python 3.11+) and the project"
    "${install[@]}" --no-build-isolation -r requirements/torch.txt -e '.[dev,backbone,lm-eval]'
fi
mv .venv/.incomplete .venv/.ready
echo "$fingerprint" >.venv/.ready
echo "setup: .venv is ready after $((SECONDS - started)) s ($(.venv/bin/python -c 'import torch; print("torch", torch.__version__)'))"
