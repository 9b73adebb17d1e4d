#!/bin/sh
# Brings a Debian or Ubuntu machine to where `make run` (run), `make check` (check), `make test`
# (test) or `make bench` (bench) work, or where the mount can be used too (mount). Says what it
# installs, installs what is missing only, and does nothing the second time.
# PYTHON=/path/to/python3 chooses the interpreter.
set -eu
cd "$(dirname "$0")"
purpose=${1:-run}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

recent_enough() { # whether the interpreter $1 is 3.11 or newer
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() { # prints the interpreter to use; nothing where there is none
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if recent_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
}

python_headers() { # prints the package of the C headers for the interpreter $1 where they lack
    if [ -z "$1" ]; then
        [ -n "${PYTHON:-}" ] || echo python3-dev
    elif ! "$1" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null; then
        echo "$(basename "$1")-dev"
    fi
}

missing_packages() { # prints the packages that provide what this purpose lacks
    python=$(find_python)
    if [ -z "$python" ]; then
        [ -n "${PYTHON:-}" ] || command -v python3 >/dev/null || echo python3 python3-venv
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        case $python in
            */python3) echo python3-venv ;;
            *) echo "$(basename "$python")-venv" ;;
        esac
    fi
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    case $purpose in
        run | check) return ;;
    esac
    [ -e /usr/include/fuse3/fuse_lowlevel.h ] || echo libfuse3-dev
    [ -e /usr/include/stdio.h ] || echo libc6-dev
    python_headers "$python"
    for command in gcc pkg-config; do
        command -v "$command" >/dev/null || echo "$command"
    done
    [ "$purpose" != mount ] || return 0
    while read -r command package; do
        command -v "$command" >/dev/null || echo "$package"
    done <<PACKAGES
containerd containerd
ctr containerd
runc runc
docker-registry docker-registry
skopeo skopeo
podman podman
buildah buildah
nginx nginx
htpasswd apache2-utils
ip iproute2
mkfs.ext4 e2fsprogs
strace strace
curl curl
systemd-analyze systemd
mkfs.erofs erofs-utils
ctr-remote stargz-snapshotter
mmdebstrap mmdebstrap
setcap libcap2-bin
setfattr attr
fusermount3 fuse3
PACKAGES
    if [ "$purpose" = bench ]; then
        command -v wrk >/dev/null || echo wrk
    fi
}

install_packages() {
    packages=$(missing_packages | tr ' ' '\n' | sort -u | tr '\n' ' ' | sed 's/ *$//')
    [ -n "$packages" ] || return 0
    command -v apt-get >/dev/null ||
        fail "missing: $packages; without apt-get they have to be installed by hand"
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "missing: $packages; run: apt-get install $packages (as root)"
        sudo="sudo "
    fi
    run="${sudo}env DEBIAN_FRONTEND=noninteractive apt-get -qq"
    say "missing: $packages"
    say "$run update && $run install --yes --no-install-recommends $packages"
    # Packages start their daemons on a machine with systemd; the tests start their own.
    [ ! -d /run/systemd/system ] || say "Debian starts what is a service among these; the tests do not need it running"
    # shellcheck disable=SC2086 # words are wanted
    $run update && $run install --yes --no-install-recommends $packages >/dev/null </dev/null ||
        fail "apt-get failed; its own words are above"
    [ -z "$(missing_packages)" ] || fail "still missing after that: $(missing_packages | tr '\n' ' ')"
}

check_python() {
    python=$(find_python)
    [ -n "$python" ] && return
    found=$(command -v "${PYTHON:-python3}") || fail "PYTHON=$PYTHON is no interpreter"
    version=$("$found" -c 'import platform; print(platform.python_version())' 2>/dev/null) ||
        fail "$found is no Python"
    fail "Headstart needs Python 3.11 or newer; $found is $version." \
        "Install a newer one, with its venv package, and name it: make PYTHON=/path/to/python3.11"
}

install_project() {
    case $purpose in
        run) lock=requirements.lock ;;
        mount) lock=requirements-mount.lock ;;
        *) lock=requirements-dev.lock ;;
    esac
    stamp=.venv/installed-from
    # What an installation depends on; the development one includes the other.
    key() { { cat "$1" pyproject.toml; "$python" -VV; pwd; } | sha256sum | cut -d ' ' -f 1; }
    if .venv/bin/python -c '' 2>/dev/null && [ -e "$stamp" ] && [ -x .venv/bin/headstart ]; then
        installed=$(cat "$stamp")
        [ "$installed" != "$(key "$lock")" ] || return 0
        [ "$installed" != "$(key requirements-dev.lock)" ] || return 0
        [ "$lock" != requirements.lock ] || [ "$installed" != "$(key requirements-mount.lock)" ] || return 0
    fi
    say "installing $lock into .venv ($("$python" -V))"
    # One that works is added to in place: what runs from it goes on, and can be started again.
    # One of another interpreter, or that was moved here, is made anew.
    if [ "$(.venv/bin/python -VV 2>/dev/null)" != "$("$python" -VV)" ] ||
        ! grep -qs "^command = .* $(pwd)/.venv$" .venv/pyvenv.cfg; then
        "$python" -m venv --clear .venv
    fi
    pip=".venv/bin/python -m pip --disable-pip-version-check --quiet install"
    # pyfuse3 comes as source only; what compiles it is in the same lock and has to be there first.
    awk '/^[^ #]/ { source = /^pyfuse3==/ } !source' "$lock" >.venv/wheels.lock
    awk '/^[^ #]/ { source = /^pyfuse3==/ } source' "$lock" >.venv/sources.lock
    $pip --only-binary :all: --require-hashes --requirement .venv/wheels.lock
    [ ! -s .venv/sources.lock ] ||
        $pip --no-deps --no-build-isolation --require-hashes --requirement .venv/sources.lock
    $pip --no-deps --no-build-isolation --editable .
    key "$lock" >"$stamp"
}

case $purpose in
    run | mount | check | test | bench) ;;
    *) fail "unknown purpose $purpose; known: run, mount, check, test, bench" ;;
esac
install_packages
check_python
install_project
