# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the steps of the rig share. Sourced, never run.
#
# Every step prints the path of what it made on stdout and its progress on
# stderr. What it made lies in the cache under the hash of everything that went
# into it, so a step whose inputs did not change ends at once.

set -euo pipefail

RIG_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$RIG_DIR/../.." && pwd)
CACHE=${TIERD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tierd}
STEP=${STEP:-$(basename "$0")}
STEP_COMMAND=("$RIG_DIR/$(basename "$0")" "$@")
GUEST_SUITE=trixie
export LC_ALL=C.UTF-8

say() {
    printf '[%s] %s: %s\n' "$(date +%T)" "$STEP" "$*" >&2
}

die() {
    say "error: $*"
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || die "$STEP must run as root: it makes root file systems"
}

# Sixteen hex digits that stand for what comes in on stdin.
digest() {
    sha256sum | cut -c 1-16
}

# The contents of files, each with the name that the hash shall know it by.
digest_files() {
    local path
    for path; do
        printf '%s %s\n' "$(sha256sum < "$path")" "${path#"$REPO"/}"
    done
}

# quietly LABEL COMMAND...: run it with its output in a log; show that it is
# still at work every ten seconds, and the end of the log when it fails. It ends
# with us when we are interrupted.
quietly() {
    local label=$1 log pid ticker status=0 start=$SECONDS
    shift
    mkdir -p "$CACHE/logs"
    log=$CACHE/logs/${STEP// /-}-$$.log
    say "$label"
    set -m # in a process group of its own
    "$@" > "$log" 2>&1 < /dev/null &
    pid=$!
    (
        # It holds our locks too, so it must not outlive us.
        while sleep 10 && kill -0 $$ 2> /dev/null; do
            printf '[%s] %s: %s, %s s: %.70s\n' "$(date +%T)" "$STEP" "$label" \
                $((SECONDS - start)) "$(tail -n 1 "$log" | tr -d '\r')" >&2
        done
    ) < /dev/null > /dev/null &
    ticker=$!
    set +m
    # shellcheck disable=SC2064
    trap "kill -- -$pid -$ticker 2> /dev/null; exit 130" INT TERM HUP
    wait "$pid" || status=$?
    trap - INT TERM HUP
    kill -- "-$ticker" 2> /dev/null || true
    wait "$ticker" 2> /dev/null || true
    if [ "$status" != 0 ]; then
        tail -n 40 "$log" >&2
        die "$label failed with status $status; all of its output is in $log"
    fi
    rm -f "$log"
}

# A step, which ends when we do.
step() {
    setpriv --pdeathsig TERM -- "$RIG_DIR/$1" "${@:2}"
}

# cached KIND KEY KEEP BUILDER: print CACHE/KIND/KEY, first letting BUILDER fill
# it when it is not there. Two callers at once do the work once. Of older
# entries the KEEP most recently used stay.
#
# With TIERD_BUILD_CACHE (an image is being built, and there is a cache outside
# of it) the same step makes it in that cache, and it is copied from there.
cached() {
    local kind=$1 key=$2 keep=$3 builder=$4
    local dir=$CACHE/$kind dest=$CACHE/$kind/$key lock
    mkdir -p "$dir"
    if [ ! -d "$dest" ] && [ -n "${TIERD_BUILD_CACHE-}" ]; then
        local made outer=$TIERD_BUILD_CACHE
        made=$(TIERD_CACHE=$outer TIERD_BUILD_CACHE='' "${STEP_COMMAND[@]}")
        [ "$made" = "$outer/$kind/$key" ] || die "made $made instead of $kind/$key"
        rm -rf "$dest.new"
        cp -a --sparse=always "$made" "$dest.new"
        mv "$dest.new" "$dest"
    elif [ ! -d "$dest" ]; then
        exec {lock}> "$dir/.lock"
        if ! flock -n "$lock"; then
            say "waiting for another build of $kind"
            flock "$lock"
        fi
        if [ ! -d "$dest" ]; then
            need_root
            step host-packages >&2
            # Nobody else is at work here: what lies about was left by a build
            # that was killed.
            rm -rf "$dir"/.new.*
            local new started=$SECONDS
            new=$(mktemp -d "$dir/.new.XXXXXX")
            chmod 755 "$new"
            "$builder" "$new" >&2
            mv "$new" "$dest"
            say "$kind $key made in $((SECONDS - started)) s"
            prune "$dir" "$keep" "$key"
        fi
        exec {lock}>&-
    fi
    touch -c "$dest"
    printf '%s\n' "$dest"
}

prune() {
    local dir=$1 keep=$2 current=$3 old
    find "$dir" -mindepth 1 -maxdepth 1 -type d ! -name '.*' ! -name "$current" \
        -printf '%T@ %f\n' | sort -rn | tail -n "+$keep" | cut -d ' ' -f 2 |
        while read -r old; do
            say "dropping the old $(basename "$dir") $old"
            rm -rf "${dir:?}/$old"
        done
}

# The Debian mirror that this host's own apt uses.
debian_mirror() {
    local uri
    # shellcheck disable=SC2016
    uri=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)' |
        awk -F '|' '$1 == "Debian" && $2 == "Debian" && $3 !~ /-/ && $4 == "main" { print $5; exit }')
    [ -n "$uri" ] || die "apt has no Debian archive configured (or was never updated: run apt-get update)"
    printf '%s\n' "$uri"
}

# bootstrap DIR PACKAGE...: a minimal Debian root with these packages in it.
bootstrap() {
    local root=$1 include
    shift
    include=$(IFS=,; printf '%s' "$*")
    quietly "bootstrapping $GUEST_SUITE with $# packages" \
        debootstrap --variant=minbase --include="$include" "$GUEST_SUITE" "$root" "$(debian_mirror)"
    # Nothing reads these, and every copy of the root pays for them.
    rm -rf "$root"/var/cache/apt/archives "$root"/var/lib/apt/lists "$root"/usr/share/doc \
        "$root"/usr/share/man "$root"/usr/share/locale "$root"/var/log/bootstrap.log
}
