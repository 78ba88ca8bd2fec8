#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Check the series: that it applies with git am and with quilt, checkpatch, and
# that what it touches builds in every configuration that matters, with W=1 and
# sparse.
#
#	check.sh [--quick] SOURCE
#
# SOURCE is the unpacked linux-source-6.12, or its tar file; it is not written
# to.  Everything happens below $WORK (default: a directory that is removed
# afterwards).  --quick leaves the builds out.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
patches=$here/6.12
quick=
if [ "${1-}" = --quick ]; then
	quick=1
	shift
fi
source=${1:?the kernel source, a directory or a tar file}
failed=0

if [ -z "${WORK-}" ]; then
	WORK=$(mktemp -d)
	trap 'rm -rf "$WORK"' EXIT
fi
mkdir -p "$WORK"
tree=$WORK/tree

say() { printf '== %s\n' "$*"; }
fail() { printf 'FAIL: %s\n' "$*"; failed=1; }

# What checkpatch may say. Everything else fails.
excused=(
	'Missing Signed-off-by'		# whoever submits the patch adds it
	'does MAINTAINERS need updating'	# a hint, not a finding
	"Lines should not end with a '('"	# TRACE_EVENT, as in every such header
	'Prefer using the BIT macro'	# selftest: user space has none
	'Use of volatile is usually wrong'	# selftest: reads that must happen
	'ENOSYS means'			# selftest: exactly that is tested
)
trace_header='Alignment should match open parenthesis'

unpack() {
	if [ -d "$tree" ]; then
		return
	fi
	say "unpacking"
	if [ -d "$source" ]; then
		cp -a "$source" "$tree"
	else
		mkdir -p "$tree"
		tar xf "$source" -C "$tree" --strip-components=1
	fi
	rm -rf "$tree/.git" "$tree/.pc"
	git -C "$tree" init -q
	git -C "$tree" config gc.auto 0
	git -C "$tree" config user.name check
	git -C "$tree" config user.email check@localhost
	git -C "$tree" add -Af .
	git -C "$tree" commit -qm base
	git -C "$tree" tag -f base >/dev/null
}

list() {
	local p

	while read -r p; do
		case $p in ''|'#'*) ;; *) printf '%s\n' "$patches/$p" ;; esac
	done <"$patches/series"
}

check_apply() {
	local -a all

	mapfile -t all < <(list)
	say "git am, ${#all[@]} patches"
	git -C "$tree" checkout -q -f -B series base
	git -C "$tree" am -q "${all[@]}" || fail "git am"
	git -C "$tree" diff base series >"$WORK/am.diff"

	say "quilt"
	git -C "$tree" worktree prune
	rm -rf "$WORK/quilt"
	git -C "$tree" worktree add -q -f --detach "$WORK/quilt" base
	(cd "$WORK/quilt" && QUILT_PATCHES=$patches quilt push -aq >/dev/null) ||
		fail "quilt push -a"
	rm -rf "$WORK/quilt/.pc"
	git -C "$WORK/quilt" add -Af .
	git -C "$WORK/quilt" diff --cached base >"$WORK/quilt.diff"
	cmp -s "$WORK/am.diff" "$WORK/quilt.diff" || fail "git am and quilt differ"
	git -C "$tree" worktree remove --force "$WORK/quilt"
}

check_style() {
	local p out line text

	say "checkpatch --strict"
	for p in $(list); do
		out=$("$tree/scripts/checkpatch.pl" --root="$tree" --strict \
			--terse --show-types "$p" | grep -E ': (ERROR|WARNING|CHECK)' || true)
		while IFS= read -r line; do
			[ -n "$line" ] || continue
			for text in "${excused[@]}"; do
				case $line in *"$text"*) continue 2 ;; esac
			done
			case $p in *tracepoint*)
				case $line in *"$trace_header"*) continue ;; esac ;;
			esac
			fail "${line#"$patches/"}"
		done <<<"$out"
	done
}

# What sparse says about cpuset.c without the series, too
old_findings="context imbalance in 'cpuset_callback_"

objects=(mm/move_phys_pages.o kernel/cgroup/cpuset.o kernel/sys_ni.o)

# configure NAME FRAGMENT-LINES...
configure() {
	local name=$1 out=$WORK/$1 line sym val

	shift
	mkdir -p "$out"
	make -s -C "$tree" O="$out" tinyconfig >/dev/null
	cat "$patches/config/guest.config" "$patches/config/move_phys_pages.config" \
		>>"$out/.config"
	printf '%s\n' "$@" >>"$out/.config"
	make -s -C "$tree" O="$out" olddefconfig >/dev/null 2>&1
	for line in "$@"; do
		sym=${line%%=*} val=${line#*=}
		if [ "$val" = n ]; then
			! grep -q "^$sym=" "$out/.config" || fail "$name: $line"
		else
			grep -qx "$line" "$out/.config" || fail "$name: $line"
		fi
	done
}

# Every symbol that a fragment asks for must have come on
check_fragment() {
	local out=$WORK/$1 f line

	shift
	for f in "$@"; do
		while IFS= read -r line; do
			case $line in
			CONFIG_*=n)
				! grep -q "^${line%=n}=" "$out/.config" ||
					fail "$f: $line" ;;
			CONFIG_*)
				grep -qx "$line" "$out/.config" || fail "$f: $line" ;;
			esac
		done <"$patches/config/$f"
	done
}

# build NAME OBJECT...: silence is success
build() {
	local name=$1 out=$WORK/$1 log

	shift
	say "build: $name"
	log=$(make -C "$tree" O="$out" -j"$(nproc)" -s W=1 "${sparse[@]}" "$@" 2>&1 |
		grep -E 'move_phys_pages|cpuset\.c|sys_ni|error|\*\*\*' |
		grep -vF "$old_findings" || true)
	[ -z "$log" ] || fail "$name: $log"
}

check_builds() {
	local -a sparse=()

	git -C "$tree" checkout -q -f series

	if command -v sparse >/dev/null; then
		sparse=(C=1)
	fi
	configure on
	check_fragment on guest.config move_phys_pages.config
	build on "${objects[@]}" arch/x86/entry/
	sparse=()
	configure debug CONFIG_DEBUG_KERNEL=y
	cat "$patches/config/debug.config" >>"$WORK/debug/.config"
	make -s -C "$tree" O="$WORK/debug" olddefconfig >/dev/null 2>&1
	check_fragment debug debug.config move_phys_pages.config
	build debug "${objects[@]}"
	configure off CONFIG_MOVE_PHYS_PAGES=n
	build off kernel/cgroup/cpuset.o kernel/sys_ni.o
	configure no-numa CONFIG_NUMA=n CONFIG_MOVE_PHYS_PAGES=n
	build no-numa kernel/cgroup/cpuset.o kernel/sys_ni.o
	configure no-memcg CONFIG_MEMCG=n CONFIG_MOVE_PHYS_PAGES=n
	build no-memcg kernel/cgroup/cpuset.o kernel/sys_ni.o
	configure no-cpusets CONFIG_CPUSETS=n CONFIG_MOVE_PHYS_PAGES=n
	build no-cpusets kernel/sys_ni.o mm/page_alloc.o
	configure no-migration CONFIG_MIGRATION=n CONFIG_COMPACTION=n CONFIG_TRANSPARENT_HUGEPAGE=n CONFIG_KSM=n CONFIG_MOVE_PHYS_PAGES=n
	build no-migration kernel/cgroup/cpuset.o kernel/sys_ni.o
	configure no-compat CONFIG_IA32_EMULATION=n CONFIG_MOVE_PHYS_PAGES=y
	build no-compat "${objects[@]}"
}

unpack
check_apply
check_style
if [ -z "$quick" ]; then
	check_builds
fi
if [ $failed = 0 ]; then
	say "all checks passed"
fi
exit $failed
