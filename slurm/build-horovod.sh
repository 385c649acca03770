#!/usr/bin/env bash
# Builds Horovod for the installed PyTorch, once, and installs it.
#
#   bash slurm/build-horovod.sh            into the environment of `python`, or of $PYTHON
#   bash slurm/build-horovod.sh --wheel    installs nothing and prints the wheel's path
#
# The wheel is cached in ${XDG_CACHE_HOME:-~/.cache}/openclip-superclip, one for each Python and PyTorch. Collectives use
# gloo on CPUs, and NCCL if PyTorch is a CUDA build and NCCL's header is found: in $HOROVOD_NCCL_HOME, in the pip package
# that PyTorch installs, or in CUDA's own folder. Needs g++ 10 or newer and, for CUDA, nvcc. The options in $CMAKE_ARGS
# are passed to CMake.
set -euo pipefail
horovod=0.28.1
python=${PYTHON:-python}
say() { echo "build-horovod: $*" >&2; }
fail() { say "$*"; exit 1; }
case ${1-} in "" | --wheel) ;; *) fail "unknown argument '$1'; expected --wheel or nothing" ;; esac

# What there is: Python's tag, PyTorch and its CUDA, and where pip has put NCCL.
about=$("$python" - <<'PY'
import importlib.util, platform, sys
try:
    import torch
except ImportError:
    sys.exit(f"build-horovod: {sys.executable} has no PyTorch: install it first")
spec = importlib.util.find_spec("nvidia.nccl") if importlib.util.find_spec("nvidia") else None
tag = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}-torch{torch.__version__}"
print(tag, torch.version.cuda or "none", list(spec.submodule_search_locations)[0] if spec else "none")
PY
)
read -r tag cuda pip_nccl <<<"$about"

nccl=none
if [ "$cuda" != none ]; then
    nvcc=$(command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2>/dev/null) ||
        fail "PyTorch is built for CUDA $cuda, and nvcc was not found: load CUDA's module or set CUDA_HOME"
    cuda_home=$(realpath "$("$nvcc" --dryrun -c -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')")
    for folder in "${HOROVOD_NCCL_HOME:-none}" "$pip_nccl" "$cuda_home" /usr; do
        if [ -e "$folder/include/nccl.h" ]; then nccl=$folder; break; fi
    done
fi
operations=$([ "$nccl" = none ] && echo gloo || echo nccl)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/openclip-superclip/horovod-$horovod-$tag-$operations

# Fills $scratch/tools with what the environment lacks for the build, and finds a CMake that reads Horovod's files.
find_tools() {
    local missing=()
    mkdir "$scratch/tools"
    export PYTHONPATH=$scratch/tools${PYTHONPATH:+:$PYTHONPATH}
    "$python" -c 'import setuptools, wheel, packaging, cloudpickle, psutil, yaml, cffi' 2>/dev/null ||
        missing=(setuptools wheel packaging cloudpickle psutil pyyaml cffi)
    cmake=$(command -v cmake || true)
    case $("${cmake:-false}" --version 2>/dev/null | head -n 1) in
        *" 3."*) ;;
        *) cmake=$scratch/tools/bin/cmake; missing+=("cmake>=3.18,<4") ;;
    esac
    [ "${#missing[@]}" = 0 ] || "$python" -m pip install --quiet --target "$scratch/tools" "${missing[@]}" >&2
    if ! "$python" -c 'import distutils' 2>/dev/null; then  # which Horovod imports, and Python 3.12 no longer has
        ln -s setuptools/_distutils "$scratch/tools/distutils"
    fi
}

# Writes the compiler wrappers $scratch/cxx and $scratch/cmake, and exports the options of Horovod's build.
configure() {
    local options=${CMAKE_ARGS-}
    export CXX=$scratch/cxx HOROVOD_CMAKE=$scratch/cmake MAKEFLAGS=${MAKEFLAGS:--j$(nproc)}
    export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
    export HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1
    if [ "$cuda" = none ]; then  # even if there is an nvcc
        options+=" -DCMAKE_CUDA_COMPILER= -DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON"
    else  # nvcc has to take the same C++ as the compiler that it calls
        export CUDA_HOME=$cuda_home HOROVOD_CUDA_HOME=$cuda_home NVCC_APPEND_FLAGS="${NVCC_APPEND_FLAGS-} -std=c++20"
    fi
    if [ "$nccl" != none ]; then
        mkdir "$scratch/nccl"  # pip's package has no libnccl.so, which the linker looks for
        for library in "$nccl"/lib{,64,/*-linux-gnu}/libnccl.so{.2,}; do
            if [ -e "$library" ]; then ln -sf "$library" "$scratch/nccl/libnccl.so"; fi
        done
        export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED
        export HOROVOD_NCCL_INCLUDE=$nccl/include HOROVOD_NCCL_LIB=$scratch/nccl
    fi
    # PyTorch's headers are C++20, and Horovod asks for C++14: the last -std counts.
    printf '#!/bin/sh\nexec %s "$@" -std=c++20 -g0\n' "$cxx" >"$scratch/cxx"
    printf '#!/bin/sh\ncase $1 in --build) exec %s "$@" ;; esac\nexec %s %s "$@"\n' "$cmake" "$cmake" "$options" \
        >"$scratch/cmake"
    chmod +x "$scratch/cxx" "$scratch/cmake"
}

build() {
    cxx=$(command -v "${CXX:-g++}") || fail "there is no C++ compiler ${CXX:-g++}: install g++ 10 or newer, or set CXX"
    mkdir -p "$(dirname "$cache")"
    scratch=$(mktemp -d "$cache.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    find_tools
    configure
    say "building Horovod $horovod for $tag (CUDA: $cuda, NCCL: $nccl); takes 2 to 5 minutes"
    "$python" -m pip wheel --no-build-isolation --no-deps --no-cache-dir --wheel-dir "$scratch/wheel" \
        "horovod==$horovod" >"$cache.log" 2>&1 ||
        { tail -n 30 "$cache.log" >&2; fail "Horovod does not build; its log is $cache.log"; }
    mv -T "$scratch/wheel" "$cache" 2>/dev/null || [ -d "$cache" ]  # or another build was quicker
}

[ -d "$cache" ] || (build)
wheel=$(ls "$cache"/*.whl)
if [ "${1-}" = --wheel ]; then
    echo "$wheel"
else
    "$python" -m pip install --quiet --force-reinstall --no-deps "$wheel" >&2  # also over one for another PyTorch
    "$python" -m pip install --quiet "$wheel" 'setuptools; python_version >= "3.12"' >&2  # horovodrun's distutils
    "$python" -c 'import horovod.torch as hvd; print("NCCL" if hvd.nccl_built() else "gloo")' |
        sed "s/^/build-horovod: Horovod $horovod is installed, with /" >&2
fi
