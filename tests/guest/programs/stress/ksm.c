// SPDX-License-Identifier: Apache-2.0
/* Equal pages of several processes that KSM merges, and that part again. */
#include "stress.h"

#include <string.h>
#include <sys/mman.h>

#define PAGES 256UL
#define KINDS 8UL
#define KSM "/sys/kernel/mm/ksm/"
#define OWN (1UL << 50)

static struct event *shared, *broke, *unmerged, *all_unmerged;

void ksm_setup(void)
{
	shared = event("most pages shared", 100);
	shared->need = 100; /* a peak does not grow with time */
	broke = event("pages written apart", 50);
	unmerged = event("areas unmerged", 1);
	all_unmerged = event("all unmerged", 1);
	must_write(KSM "pages_to_scan", "1000");
	must_write(KSM "sleep_millisecs", "5");
	must_write(KSM "run", "1");
}

void ksm_finish(void)
{
	must_write(KSM "run", "2");
	must_write(KSM "run", "0");
}

/* Kinds are the same in all processes. */
static u64 kind(u64 i)
{
	return 1UL << 40 | (i % KINDS) << 9;
}

static long merging(void)
{
	return read_number("/proc/self/ksm_merging_pages");
}

/* Until KSM has found some of this area; it needs to see a page twice unchanged. */
static void await_merge(void)
{
	u64 end = now_ns() + 5000000000UL;

	while (!stopping() && now_ns() < end && merging() < (long)PAGES / 2)
		dwell(50000);
}

static void check_merged(const char *area)
{
	for (u64 i = 0; i < PAGES; i++)
		check(area + i * PAGE, kind(i), "KSM");
}

static void write_apart(char *area, unsigned me)
{
	u64 own = OWN | (u64)me << 30;

	for (u64 i = 0; i < PAGES; i += 4)
		fill(area + i * PAGE, own | i << 9);
	for (u64 i = 0; i < PAGES; i++)
		check(area + i * PAGE, i % 4 ? kind(i) : own | i << 9, "KSM after a write");
	for (u64 i = 0; i < PAGES; i += 4)
		fill(area + i * PAGE, kind(i));
	count(broke, PAGES / 4);
}

void ksm_load(unsigned me)
{
	while (!stopping()) {
		char *area = map_anon(PAGES * PAGE);

		if (madvise(area, PAGES * PAGE, MADV_MERGEABLE))
			die("MADV_MERGEABLE");
		for (u64 i = 0; i < PAGES; i++)
			fill(area + i * PAGE, kind(i));
		publish(me * SLOTS, area, PAGES);
		for (int round = 0; round < 3 && !stopping(); round++) {
			await_merge();
			check_merged(area);
			write_apart(area, me);
		}
		await_merge();
		if (rnd() % 2) {
			if (madvise(area, PAGES * PAGE, MADV_UNMERGEABLE))
				die("MADV_UNMERGEABLE");
			count(unmerged, 1);
			dwell(10000);
			check_merged(area);
		}
		munmap(area, PAGES * PAGE);
	}
	withdraw(me * SLOTS);
}

/* Takes all of it apart now and then. */
void ksm_control(unsigned me)
{
	u64 next = now_ns() + 5000000000UL;
	(void)me;

	while (!stopping()) {
		long pages = read_number(KSM "pages_sharing");

		if (pages > (long)atomic_load(&shared->count))
			atomic_store(&shared->count, pages);
		if (now_ns() > next && pages > 100) {
			must_write(KSM "run", "2");
			count(all_unmerged, 1);
			must_write(KSM "run", "1");
			next = now_ns() + 10000000000UL;
		}
		dwell(100000);
	}
}
