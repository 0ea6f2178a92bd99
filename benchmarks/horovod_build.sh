#!/bin/sh
# Builds Horovod 0.28.1 with torch and gloo into the virtual environment VENV, which must hold torch:
#     sh benchmarks/horovod_build.sh VENV
# Its CMake files ask for C++14, which today's torch headers refuse; a wrapper round g++ asks for C++17 instead.
set -eu
if [ $# -ne 1 ] || [ ! -x "$1/bin/python" ]; then
    echo "usage: sh benchmarks/horovod_build.sh VENV   (VENV/bin/python must exist and have torch)" >&2
    exit 2
fi
python=$(cd "$1" && pwd)/bin/python
"$python" -c "import torch" || { echo "install torch into $1 first" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/c++" <<'WRAPPER'
#!/usr/bin/env python3
import os, re, sys
os.execvp("g++", ["g++", *(re.sub(r"^-std=(c|gnu)\+\+1[14]$", "-std=c++17", word) for word in sys.argv[1:])])
WRAPPER
chmod +x "$work/c++"
"$python" -m pip install wheel setuptools cffi cloudpickle packaging pyyaml psutil
HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 \
    MAKEFLAGS="${MAKEFLAGS:--j2}" CXX="$work/c++" \
    "$python" -m pip install --no-build-isolation --no-deps --no-cache-dir horovod==0.28.1
"$python" -c "import horovod.torch; print('Horovod', horovod.__version__, 'is ready')"
