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
# afterwards).  --quick leaves the builds out.  Needs git, quilt and perl, and
# for the builds sparse, python3-ply and python3-git (checkpatch's SPDX check),
# and what a kernel build needs.
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

list() {
	local p

	while read -r p; do
		case $p in ''|'#'*) ;; *) printf '%s\n' "$patches/$p" ;; esac
	done <"$patches/series"
}

# The files of the tree that the series changes, without those that it adds
changed() {
	# shellcheck disable=SC2016
	list | xargs awk '
		$1 == "---" { old = $2 }
		$1 == "+++" && old == "/dev/null" { added[$2] = 1 }
		$1 == "+++" && old != "/dev/null" { changed[$2] = 1 }
		END { for (f in changed) if (!(f in added)) print substr(f, 3) }
	' | sort
}

unpack() {
	local -a what=()

	if [ -d "$tree" ]; then
		return
	fi
	say "unpacking"
	mkdir -p "$tree"
	if [ -n "$quick" ]; then
		# What changes, checkpatch, and how it knows the top of a tree
		mapfile -t what < <(changed
			printf '%s\n' scripts/checkpatch.pl scripts/spelling.txt \
				scripts/const_structs.checkpatch COPYING CREDITS Kbuild \
				MAINTAINERS Makefile README)
	fi
	if [ -n "$quick" ] && [ -d "$source" ]; then
		(cd "$source" && cp -a --parents "${what[@]}" "$tree")
	elif [ -d "$source" ]; then
		cp -a "$source/." "$tree"
	else
		top=$(tar tf "$source" | head -n 1 || true)
		tar xf "$source" -C "$tree" --strip-components=1 \
			"${what[@]/#/"${top%%/*}/"}"
	fi
	mkdir -p "$tree"/{Documentation,arch,include,drivers,fs,init,ipc,kernel,lib}
	rm -rf "$tree/.git" "$tree/.pc"
	git -C "$tree" init -q
	git -C "$tree" config gc.auto 0
	git -C "$tree" config user.name check
	git -C "$tree" config user.email check@localhost
	# git need not know the others.
	changed | git -C "$tree" --literal-pathspecs add -f --pathspec-from-file=-
	git -C "$tree" commit -qm base
	git -C "$tree" tag -f base >/dev/null
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
	(cd "$WORK/quilt" && QUILT_PATCHES=$patches quilt --quiltrc=- push -aq \
		>/dev/null) || fail "quilt push -a"
	rm -rf "$WORK/quilt/.pc"
	git -C "$WORK/quilt" add -Af .
	git -C "$WORK/quilt" diff --cached base >"$WORK/quilt.diff"
	cmp -s "$WORK/am.diff" "$WORK/quilt.diff" || fail "git am and quilt differ"
	git -C "$tree" worktree remove --force "$WORK/quilt"
}

check_style() {
	local p out line text
	local -A said=()

	say "checkpatch --strict"
	for p in $(list); do
		out=$("$tree/scripts/checkpatch.pl" --root="$tree" --strict \
			--terse --show-types "$p" || true)
		# Without its summary it did not come to an end.
		grep -q '^total: ' <<<"$out" || fail "checkpatch on ${p##*/}: $out"
		while IFS= read -r line; do
			case $line in
			*': ERROR'*|*': WARNING'*|*': CHECK'*) ;;
			*) continue ;;
			esac
			for text in "${excused[@]}"; do
				case $line in *"$text"*)
					said[$text]=$((${said[$text]-0} + 1))
					continue 2 ;;
				esac
			done
			case $p in *tracepoint*)
				case $line in *"$trace_header"*)
					said[$trace_header]=$((${said[$trace_header]-0} + 1))
					continue ;;
				esac ;;
			esac
			fail "${line#"$patches/"}"
		done <<<"$out"
	done
	for text in "${!said[@]}"; do
		say "excused ${said[$text]} x $text"
	done
}

# What sparse says about cpuset.c without the series, too
old_findings="context imbalance in 'cpuset_callback_"

objects=(mm/move_phys_pages.o kernel/cgroup/cpuset.o kernel/sys_ni.o)

# configure NAME LINE...: in $WORK/NAME, what the fragments ask for and these
# lines. A line with "not" is not asked for: that symbol must be gone all the same.
configure() {
	local name=$1 out=$WORK/$1 line

	shift
	# The host's tools of another configuration are as good.
	if [ -d "$WORK/on" ] && [ ! -d "$out" ]; then
		cp -a "$WORK/on" "$out"
	fi
	mkdir -p "$out"
	make -s -C "$tree" O="$out" tinyconfig >/dev/null
	cat "$patches/config/guest.config" "$patches/config/move_phys_pages.config" \
		>>"$out/.config"
	printf '%s\n' "$@" | grep -v '^not ' >>"$out/.config"
	make -s -C "$tree" O="$out" olddefconfig >/dev/null 2>&1
	printf '%s\n' "$@" | sed 's/^not \(.*\)/\1=n/' >"$out/wanted"
	check_wanted "$name" "$out/wanted"
}

# check_wanted NAME FILE: each symbol has the value asked for
check_wanted() {
	local name=$1 line

	while IFS= read -r line; do
		case $line in
		CONFIG_*=n)
			! grep -q "^${line%=n}=" "$WORK/$name/.config" ||
				fail "$name: $line" ;;
		CONFIG_*)
			grep -qx "$line" "$WORK/$name/.config" ||
				fail "$name: $line" ;;
		esac
	done <"$2"
}

# build NAME OBJECT...: silence is success
build() {
	local name=$1 out=$WORK/$1 log=$WORK/$1.log

	shift
	say "build: $name"
	if ! make -C "$tree" O="$out" -j"$(nproc)" -s W=1 "${sparse[@]}" "$@" \
		>"$log" 2>&1; then
		tail -n 20 "$log"
		fail "$name: make"
	fi
	# Of the files that the series touches; others are not ours to mend. A note
	# names who includes the header that the finding after it is in.
	if grep -E 'move_phys_pages|cpuset\.[ch]|sys_ni|syscalls' "$log" |
		grep -vF -e "$old_findings" -e 'note: in included file'; then
		fail "$name: the above"
	fi
}

# Each patch alone leaves a tree that builds
check_each() {
	local p out=$WORK/on name=on
	local -a sparse=() have

	git -C "$tree" checkout -q -f -B each base
	for p in $(list); do
		git -C "$tree" am -q "$p" || fail "git am $p"
		have=(kernel/cgroup/cpuset.o kernel/sys_ni.o arch/x86/entry/)
		if [ -e "$tree/mm/move_phys_pages.c" ]; then
			have+=(mm/move_phys_pages.o)
		fi
		say "after ${p##*/}"
		make -s -C "$tree" O="$out" olddefconfig >/dev/null 2>&1
		build "$name" "${have[@]}"
	done
	git -C "$tree" diff --quiet series || fail "the patches one by one differ"
}

check_builds() {
	local -a sparse=()
	local no_call=(kernel/cgroup/cpuset.o kernel/sys_ni.o arch/x86/entry/)

	git -C "$tree" checkout -q -f series
	configure on CONFIG_MOVE_PHYS_PAGES=y
	check_wanted on "$patches/config/guest.config"
	check_each

	git -C "$tree" checkout -q -f series
	if command -v sparse >/dev/null; then
		sparse=(C=2)
	else
		fail "sparse is not installed"
	fi
	build on "${objects[@]}" arch/x86/entry/
	sparse=()
	configure off CONFIG_MOVE_PHYS_PAGES=n
	build off "${no_call[@]}"
	configure no-compat CONFIG_IA32_EMULATION=n CONFIG_MOVE_PHYS_PAGES=y
	build no-compat "${objects[@]}" arch/x86/entry/
	# Without any of these there is no call, whatever is asked for.
	configure no-numa CONFIG_NUMA=n "not CONFIG_MOVE_PHYS_PAGES"
	build no-numa "${no_call[@]}"
	configure no-memcg CONFIG_MEMCG=n "not CONFIG_MOVE_PHYS_PAGES"
	build no-memcg "${no_call[@]}"
	configure no-cpusets CONFIG_CPUSETS=n "not CONFIG_MOVE_PHYS_PAGES"
	build no-cpusets kernel/sys_ni.o mm/page_alloc.o arch/x86/entry/
	configure no-migration CONFIG_MIGRATION=n CONFIG_COMPACTION=n \
		CONFIG_TRANSPARENT_HUGEPAGE=n CONFIG_KSM=n "not CONFIG_MOVE_PHYS_PAGES"
	build no-migration "${no_call[@]}"
	configure debug CONFIG_DEBUG_KERNEL=y
	cat "$patches/config/debug.config" >>"$WORK/debug/.config"
	make -s -C "$tree" O="$WORK/debug" olddefconfig >/dev/null 2>&1
	check_wanted debug "$patches/config/debug.config"
	check_wanted debug "$patches/config/move_phys_pages.config"
	build debug "${objects[@]}"
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
