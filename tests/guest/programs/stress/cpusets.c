// SPDX-License-Identifier: Apache-2.0
/*
 * Cpusets that change during a flood. Once a change has settled, that is, when every call that
 * began before it is over, no page may come to a node that is forbidden now. Pages that were
 * left there, because somebody held them as the kernel moved the others, may stay.
 */
#include "stress.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define CGROUPS "/sys/fs/cgroup/"
#define GROUPS 2
#define OWN (4 * MIB)
#define SHARED MIB
#define PAGES ((OWN + SHARED) / PAGE)

static struct event *changes, *looks, *denied, *came_free;

/* What the loads tell the control, in memory that all of them have. */
static struct {
	atomic_int pid;
	u64 own, shared;
} *groups;
static char *shared_file;

static void make_group(unsigned i)
{
	char path[80];

	snprintf(path, sizeof(path), CGROUPS "stress%u", i);
	if (mkdir(path, 0755) && errno != EEXIST)
		die("%s", path);
}

void cpuset_setup(void)
{
	changes = event("changes settled", 6);
	looks = event("pages looked at", 10000);
	denied = event("moves refused by cpuset", 500);
	came_free = event("pages left behind", 0);
	must_write(CGROUPS "cgroup.subtree_control", "+cpuset");
	groups = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared_file = map_file("/dev/shm", SHARED);
	if (groups == MAP_FAILED)
		die("mmap");
	for (unsigned i = 0; i < GROUPS; i++)
		make_group(i);
}

void cpuset_finish(void)
{
	for (unsigned i = 0; i < GROUPS; i++) {
		char path[80];

		snprintf(path, sizeof(path), CGROUPS "stress%u", i);
		/* The last process may not be quite gone. */
		for (int try = 0; rmdir(path) && try < 100; try++)
			usleep(50000);
	}
	munmap(shared_file, SHARED);
}

/* In a group of its own, with memory of its own and a file that both groups map. */
void cpuset_load(unsigned me)
{
	unsigned group = me % GROUPS;
	char path[80];
	char *own;

	snprintf(path, sizeof(path), CGROUPS "stress%u/cgroup.procs", group);
	must_write(path, "0");
	own = map_anon(OWN);
	for (u64 i = 0; i < OWN / PAGE; i++)
		fill(own + i * PAGE, ((u64)me + 1) << 40 | i << 9);
	for (u64 i = 0; i < SHARED / PAGE; i++)
		fill(shared_file + i * PAGE, i << 9);
	publish(me * SLOTS, own, OWN / PAGE);
	publish(me * SLOTS + 1, shared_file, SHARED / PAGE);
	groups[group].own = (u64)own;
	groups[group].shared = (u64)shared_file;
	atomic_store(&groups[group].pid, getpid());
	while (!stopping()) {
		for (u64 i = 0; i < OWN / PAGE && !stopping(); i++)
			check(own + i * PAGE, ((u64)me + 1) << 40 | i << 9, "cpuset");
		for (u64 i = 0; i < SHARED / PAGE && !stopping(); i++)
			check(shared_file + i * PAGE, i << 9, "cpuset, shared");
		dwell(50000);
	}
	/* Out of the group, so that it can be removed. */
	must_write(CGROUPS "cgroup.procs", "0");
}

/* Until each flooder has ended every call that it had begun. */
static void await_flooders(u64 calls)
{
	u64 goal[MAX_FLOODERS];

	for (unsigned i = 0; i < ctl->nr_flooders; i++)
		goal[i] = atomic_load(&ctl->flooders[i].started) + calls;
	for (unsigned i = 0; i < ctl->nr_flooders; i++)
		while (atomic_load(&ctl->flooders[i].finished) < goal[i] && !stopping())
			usleep(1000);
}

static u64 refused_by_cpuset(void)
{
	u64 sum = 0;

	for (unsigned i = 0; i < ctl->nr_flooders; i++)
		sum += ctl->flooders[i].refused[EACCES];
	return sum;
}

/* The nodes that a group may use, as bits: one of them or both. */
static unsigned set_mems(unsigned group)
{
	unsigned mask = 1 + rnd() % 3;
	char path[80], text[16];

	snprintf(path, sizeof(path), CGROUPS "stress%u/cpuset.mems", group);
	snprintf(text, sizeof(text), mask == 3 ? "%u,%u" : "%u", mask == 2 ? slow : fast, slow);
	must_write(path, text);
	return mask;
}

static unsigned bit_of(u64 address)
{
	return node_of(address) == (int)slow ? 2 : 1;
}

/* Where each page of a group was seen since the change: once allowed, for ever allowed. */
static void look(unsigned group, unsigned own_mask, unsigned shared_mask, bool *was_allowed,
		 bool first)
{
	static u64 pages[PAGES];
	pid_t pid = atomic_load(&groups[group].pid);
	unsigned n = resolve(pid, groups[group].own, OWN / PAGE, pages);

	n += resolve(pid, groups[group].shared, SHARED / PAGE, pages + n);
	if (n != PAGES)
		return; /* it ends */
	for (unsigned i = 0; i < PAGES; i++) {
		unsigned mask = i < OWN / PAGE ? own_mask : shared_mask;

		if (!pages[i])
			continue;
		bool allowed = bit_of(pages[i]) & mask;
		if (!first && was_allowed[i] && !allowed)
			broken("group %u, mask %u: page %u came to a forbidden node", group, mask, i);
		if (first || allowed)
			was_allowed[i] = allowed;
		if (!allowed)
			count(came_free, first);
		count(looks, 1);
	}
}

void cpuset_control(unsigned me)
{
	static bool was_allowed[GROUPS][PAGES];
	(void)me;

	for (unsigned i = 0; i < GROUPS; i++)
		while (!atomic_load(&groups[i].pid) && !stopping())
			usleep(10000);
	while (!stopping()) {
		unsigned mask[GROUPS];
		u64 before = refused_by_cpuset();

		for (unsigned i = 0; i < GROUPS; i++)
			mask[i] = set_mems(i);
		await_flooders(0);
		for (unsigned round = 0; round < 8 && !stopping(); round++) {
			for (unsigned i = 0; i < GROUPS; i++)
				look(i, mask[i], mask[0] & mask[1], was_allowed[i], !round);
			await_flooders(2);
		}
		count(denied, refused_by_cpuset() - before);
		count(changes, !stopping());
	}
}
