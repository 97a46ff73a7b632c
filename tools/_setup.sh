# What every tool needs before it runs, for `. tools/_setup.sh`: set_up package|vm|bench|dev, then
# run MODULE. package: .venv with the package, editable; vm: also QEMU and mmdebstrap; bench: DPDK's
# testpmd and valgrind; dev: all of these and the test tools. After set_up, `sanitized` sets up a
# build with sanitizers beside it, for all that is run from then on.

project=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
export PYVIRTNET_PROJECT="$project" PYVIRTNET_DOOR=tools/
python=$project/.venv/bin/python
sanitized_env=
PATH=$PATH:/usr/sbin:/sbin

stage() { echo "setup: $*" >&2; }
fail() { echo "setup: $1"; echo "  mend: $2"; exit 1; } >&2

set_up() {
    if [ -e /etc/pyvirtnet-guest ]; then  # the clone is read-only here, the package installed
        python=python3
        return
    fi
    exec 9<"$project"
    flock -n 9 || { stage "another tool is setting up; waiting for it"; flock 9; }
    debian_packages "$1"
    virtual_environment "$1"
    compile
    exec 9<&-
}

run() {
    module=$1
    shift
    case $module in
    pyvirtnet.*) exec env $sanitized_env "$python" -P -c "$quiet_start" "$module" "$@" ;;
    *) exec env $sanitized_env "$python" -P -m "$module" "$@" ;;
    esac
}

# As python -m, but Ctrl-C while the package is imported ends it without a traceback.
quiet_start='import os, signal, sys
before = signal.getsignal(signal.SIGINT)
if before is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
from importlib import import_module
del sys.argv[0]
main = import_module(sys.argv[0]).main
signal.signal(signal.SIGINT, before)
sys.exit(main())'

debian_packages() {
    missing=
    need gcc gcc
    [ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
    [ -e "$project/.venv/stamp" ] || python_packages
    [ -z "$missing" ] || install_packages $missing || fail "cannot install$missing (see above)" \
        "as root: apt-get update && apt-get install$missing"
    case $1 in bench | dev) bench_packages ;; esac
    case $1 in vm | dev) ;; *) return 0 ;; esac
    missing=
    need qemu-system-x86_64 qemu-system-x86
    need mmdebstrap mmdebstrap
    need mke2fs e2fsprogs
    need ip iproute2
    [ -z "$missing" ] || install_packages $missing || { [ "$1" = dev ] &&
        stage "no guests on this machine: tests in the guest skip"; } || fail \
        "cannot install$missing (see above)" "as root: apt-get update && apt-get install$missing"
}

# What has no use for them works without; what has says so.
bench_packages() {
    missing=
    need dpdk-testpmd dpdk-dev
    need valgrind valgrind
    ldconfig -p | grep -q libpcap.so || missing="$missing libpcap0.8"
    need ip iproute2
    [ -z "$missing" ] || install_packages $missing ||
        stage "cannot install$missing (as root: apt-get update && apt-get install$missing)"
}

need() { command -v "$1" >/dev/null || missing="$missing $2"; }

# The interpreter, and what of it Debian packs apart.
python_packages() {
    base=
    for name in python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            base=$("$name" -c 'import sys; print(sys.executable)')
            break
        fi
    done
    [ -n "$base" ] || fail "there is no Python 3.11 or newer" "apt-get install python3.11"
    "$base" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
    header=$("$base" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -e "$header" ] || missing="$missing python3-dev"
}

install_packages() {
    stage "installing Debian packages: $*"
    root=
    [ "$(id -u)" = 0 ] || root=sudo
    log=$(mktemp)
    { $root apt-get update && $root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1
    status=$?
    [ $status = 0 ] || tail -n 20 "$log" >&2
    rm -f "$log"
    return $status
}

virtual_environment() {
    extras=
    stamps=stamp
    case $1 in
    dev) extras='[dev]' ;;
    bench) extras='[plot]' ;;
    esac
    [ -z "$extras" ] || stamps="stamp stamp-$1"
    wanted=$(fingerprint)
    fresh=yes
    for stamp in $stamps; do
        [ "$(cat "$project/.venv/$stamp" 2>/dev/null)" = "$wanted" ] || fresh=
    done
    [ -z "$fresh" ] || return 0
    writable
    [ -n "${base:-}" ] || python_packages
    if ! "$python" -c '' 2>/dev/null || ! here; then
        stage "making .venv with $("$base" --version)"
        "$base" -m venv --clear "$project/.venv"
    fi
    stage "installing the build tools"
    "$python" -c 'import tomllib; print(*tomllib.load(open(0, "rb"))["build-system"]["requires"],
        "meson >= 1.3", "ninja", sep="\n")' <"$project/pyproject.toml" >"$project/.venv/build-tools"
    pip -r "$project/.venv/build-tools"
    stage "building the package and installing it (editable) with what it needs"
    pip --no-build-isolation --config-settings=build-dir="$project/.venv/build" \
        --editable "$project$extras"
    for stamp in $stamps; do
        fingerprint >"$project/.venv/$stamp"
    done
    own
}

# Before .venv is made or renewed: whose clone it is.
writable() {
    for folder in "$project" "$project/.venv"; do
        [ -w "$folder" ] || [ ! -e "$folder" ] || fail \
            "$(id -un) cannot write $folder, and .venv is missing, outdated or another's Python" \
            "clone the project as $(id -un), or run this with sudo"
    done
}

# Whether .venv was made where it is: programs in it name their interpreter by its whole path.
here() { "$project/.venv/bin/pip" --version 2>/dev/null | grep -qF " from $project/.venv/"; }

# Changes with the package's requirements, its place and its interpreter.
fingerprint() {
    { cat "$project/pyproject.toml"; echo "$project"; readlink -f "$python"; } | sha256sum
}

pip() {
    PATH="$project/.venv/bin:$PATH" "$python" -m pip install --quiet \
        --disable-pip-version-check --root-user-action=ignore "$@" ||
        fail "pip failed (see above)" "see that this machine reaches its package index, then again"
}

# Compiles what has changed, under the lock: two tools that start at once don't both do it.
compile() {
    [ -e "$project/.venv/build" ] || return 0
    [ -w "$project/.venv/build" ] || { compiled; return; }
    output=$(PATH="$project/.venv/bin:$PATH" ninja -C "$project/.venv/build" --quiet 2>&1) ||
        { echo "$output" >&2; fail "the package does not compile (see above)" "correct the source"; }
    own
}

# The package once more, compiled with AddressSanitizer and UndefinedBehaviorSanitizer, installed in
# an environment of its own that has everything else from .venv. $sanitized_env is what its Python
# runs with: objects from malloc, which AddressSanitizer watches, and its library before all others.
sanitized() {
    exec 9<"$project"
    flock -n 9 || { stage "another tool is setting up; waiting for it"; flock 9; }
    home=$project/.venv/sanitizers
    [ -e "$home/ready" ] || instrumented
    output=$(PATH="$project/.venv/bin:$PATH" meson install -C "$home-build" --quiet \
        --only-changed 2>&1) ||
        { echo "$output" >&2; fail "the package does not compile (see above)" "correct the source"; }
    own
    exec 9<&-
    python=$home/bin/python
    sanitized_env="PYVIRTNET_SANITIZED=1 PYTHONMALLOC=malloc
        LD_PRELOAD=$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libstdc++.so)
        ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:malloc_context_size=8:\
quarantine_size_mb=64
        UBSAN_OPTIONS=print_stacktrace=1"
}

instrumented() {
    case $(gcc -print-file-name=libasan.so) in
    /*) ;;
    *) fail "gcc has no AddressSanitizer here" "install the libasan that belongs to your gcc" ;;
    esac
    writable
    stage "compiling the package with sanitizers"
    "$project/.venv/bin/python" -m venv --clear --without-pip "$home"
    site=$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$project/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$site/outer.pth"
    rm -rf "$home-build"
    cp -a "$project/.venv/build" "$home-build"  # Cython's C in it is right: only gcc works again
    PATH="$project/.venv/bin:$PATH" meson setup --reconfigure "$home-build" "$project" >/dev/null \
        -Dbuildtype=debugoptimized -Doptimization=1 -Db_sanitize=address,undefined \
        -Dc_args="-g1 -fno-sanitize-recover=undefined -fno-omit-frame-pointer" \
        -Dprefix="$home" -Dpython.purelibdir="$site" -Dpython.platlibdir="$site" ||
        fail "meson cannot set the build up (see above)" "correct the source"
    touch "$home/ready"
}

# Another user's: used as it is. The editable package then looks, and writes no log, on import.
compiled() {
    export MESONPY_EDITABLE_VERBOSE=1
    PATH="$project/.venv/bin:$PATH" ninja -C "$project/.venv/build" -n 2>&1 |
        grep -q "no work to do" ||
        fail "the source has changed, and $(id -un) cannot write $project/.venv to compile it" \
            "run this with sudo, or as $(stat -c %U "$project")"
}

# A run with sudo leaves nothing of root's in the user's clone.
own() {
    [ "$(id -u)" != 0 ] || chown -R --reference="$project" "$project/.venv"
}
