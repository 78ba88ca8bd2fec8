// SPDX-License-Identifier: Apache-2.0
/* What the kernel moves by itself, NUMA balancing, compaction and DAMON; and offlining. */
#include "stress.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define SIZE (20 * MIB)
#define DAMON "/sys/kernel/mm/damon/admin/kdamonds/"
#define CONTEXT DAMON "0/contexts/0/"
#define SCHEMES CONTEXT "schemes/"
#define BALANCING "/proc/sys/kernel/numa_balancing"
#define SCHED "/sys/kernel/debug/sched/numa_balancing/"

static struct event *hinted, *hint_faults, *balanced, *compactions, *compacted, *damon_moved;
static struct counter {
	struct event **event;
	const char *name;
	long before;
} counters[] = {
	{&hinted, "numa_pte_updates", 0},
	{&hint_faults, "numa_hint_faults", 0},
	{&balanced, "numa_pages_migrated", 0},
	{&compacted, "compact_isolated", 0},
};

static void damon_scheme(unsigned i, const char *action, unsigned node, bool hot)
{
	const struct {
		const char *file, *value;
	} texts[] = {
		{"access_pattern/sz/min", "4096"},
		{"access_pattern/sz/max", "1099511627776"},
		{"access_pattern/nr_accesses/min", hot ? "1" : "0"},
		{"access_pattern/nr_accesses/max", hot ? "1000" : "0"},
		{"access_pattern/age/min", "0"},
		{"access_pattern/age/max", "4294967295"},
		/* A budget, or it moves all of memory at each step and nothing else runs. */
		{"quotas/bytes", "4194304"},
		{"quotas/reset_interval_ms", "200"},
	};
	char path[160], number[12];

	snprintf(path, sizeof(path), SCHEMES "%u/action", i);
	must_write(path, action);
	snprintf(path, sizeof(path), SCHEMES "%u/target_nid", i);
	snprintf(number, sizeof(number), "%u", node);
	must_write(path, number);
	for (unsigned k = 0; k < sizeof(texts) / sizeof(*texts); k++) {
		snprintf(path, sizeof(path), SCHEMES "%u/%s", i, texts[k].file);
		must_write(path, texts[k].value);
	}
}

/* Physical monitoring that sends what is idle down and what is used up. */
static void damon_start(void)
{
	char end[24];

	must_write(DAMON "nr_kdamonds", "1");
	must_write(DAMON "0/contexts/nr_contexts", "1");
	must_write(CONTEXT "operations", "paddr");
	must_write(CONTEXT "monitoring_attrs/intervals/sample_us", "5000");
	must_write(CONTEXT "monitoring_attrs/intervals/aggr_us", "100000");
	must_write(CONTEXT "monitoring_attrs/intervals/update_us", "1000000");
	must_write(CONTEXT "targets/nr_targets", "1");
	must_write(CONTEXT "targets/0/regions/nr_regions", "1");
	must_write(CONTEXT "targets/0/regions/0/start", "16777216");
	snprintf(end, sizeof(end), "%lu", end_of_memory());
	must_write(CONTEXT "targets/0/regions/0/end", end);
	must_write(SCHEMES "nr_schemes", "2");
	damon_scheme(0, "migrate_cold", slow, false);
	damon_scheme(1, "migrate_hot", fast, true);
	must_write(DAMON "0/state", "on");
}

static long damon_applied(void)
{
	long sum = 0;

	/* Busy while it is at the end of an interval. */
	if (!write_file(DAMON "0/state", "update_schemes_stats"))
		return -1;
	for (unsigned i = 0; i < 2; i++) {
		char path[160];

		snprintf(path, sizeof(path), SCHEMES "%u/stats/sz_applied", i);
		sum += read_number(path);
	}
	return sum / (long)PAGE;
}

void balance_setup(void)
{
	hinted = event("numa_pte_updates", 100);
	hint_faults = event("numa_hint_faults", 20);
	balanced = event("numa_pages_migrated", 1);
	compactions = event("compactions asked for", 5);
	compacted = event("compact_isolated", 1);
	damon_moved = event("pages DAMON moved", 20);
	for (unsigned i = 0; i < sizeof(counters) / sizeof(*counters); i++)
		counters[i].before = vmstat(counters[i].name);
	must_write(SCHED "scan_delay_ms", "100");
	must_write(SCHED "scan_period_min_ms", "100");
	must_write(SCHED "scan_period_max_ms", "500");
	damon_start();
}

void balance_finish(void)
{
	write_file(DAMON "0/state", "off");
	must_write(DAMON "nr_kdamonds", "0");
	must_write(BALANCING, "0");
	must_write(SCHED "scan_delay_ms", "1000");
	must_write(SCHED "scan_period_min_ms", "1000");
	must_write(SCHED "scan_period_max_ms", "60000");
}

/* Memory with a hot half, for those that follow accesses. */
void touch_load(unsigned me)
{
	char *area = map_anon(SIZE);

	for (u64 i = 0; i < SIZE / PAGE; i++)
		fill(area + i * PAGE, ((u64)me + 1) << 40 | i << 9);
	publish(me * SLOTS, area, SIZE / PAGE);
	while (!stopping()) {
		for (u64 i = 0; i < SIZE / PAGE / 2 && !stopping(); i++)
			check(area + i * PAGE, ((u64)me + 1) << 40 | i << 9, "hot memory");
		dwell(20000);
	}
	for (u64 i = 0; i < SIZE / PAGE; i++)
		check(area + i * PAGE, ((u64)me + 1) << 40 | i << 9, "memory at the end");
}

void balance_control(unsigned me)
{
	static const char *const modes[] = {"1", "2", "3", "0"};
	(void)me;

	for (unsigned i = 0; !stopping(); i++) {
		must_write(BALANCING, modes[i / 8 % 4]);
		must_write("/proc/sys/vm/compact_memory", "1");
		count(compactions, 1);
		usleep(200000);
		for (unsigned k = 0; k < sizeof(counters) / sizeof(*counters); k++)
			atomic_store(&(*counters[k].event)->count,
				     vmstat(counters[k].name) - counters[k].before);
		long applied = damon_applied();
		if (applied > 0)
			atomic_store(&damon_moved->count, applied);
	}
}

/* ---- offlining ---- */

static struct event *blocks_off, *all_off, *blocks_on, *off_busy;

void offline_setup(void)
{
	blocks_off = event("blocks offlined", 4);
	off_busy = event("offlining refused", 0);
	all_off = event("node was offline", 1);
	blocks_on = event("blocks onlined", 4);
}

static bool block_state(unsigned block, const char *state)
{
	char path[80];

	snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%u/state", block);
	return write_file(path, state);
}

static bool movable(unsigned block)
{
	char path[80], zones[64] = "";

	snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%u/valid_zones", block);
	FILE *file = fopen(path, "re");
	if (!file)
		return false;
	bool is = fgets(zones, sizeof(zones), file) && !strncmp(zones, "Movable", 7);
	fclose(file);
	return is;
}

/* The movable blocks of the slow node go and come, while calls move pages to it and away. */
void offline_control(unsigned me)
{
	static unsigned blocks[4096];
	unsigned n = 0, on_node = blocks_of(slow, blocks, 4096);
	(void)me;

	for (unsigned i = 0; i < on_node; i++)
		if (movable(blocks[i]))
			blocks[n++] = blocks[i];
	if (!n)
		die("node %u has no movable memory", slow);
	while (!stopping()) {
		unsigned gone = 0;

		for (unsigned i = 0; i < n; i++) {
			if (block_state(blocks[i], "offline")) {
				count(blocks_off, 1);
				gone++;
			} else if (errno == EBUSY || errno == EAGAIN || errno == EINTR) {
				count(off_busy, 1);
			} else {
				die("offlining block %u", blocks[i]);
			}
		}
		count(all_off, gone == n);
		dwell(300000);
		for (unsigned i = 0; i < n; i++)
			if (block_state(blocks[i], "online_movable"))
				count(blocks_on, 1);
		dwell(2000000);
	}
}
