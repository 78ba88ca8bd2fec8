// SPDX-License-Identifier: Apache-2.0
/* Huge pages that are split in every way there is, and collapsed again. */
#include "stress.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define SIZE (3 * HUGE_PAGE)
#define PAGES (SIZE / PAGE)
#define KHUGEPAGED "/sys/kernel/mm/transparent_hugepage/khugepaged/"

static struct event *pmd_split, *folio_split, *partly, *collapsed, *refused, *kernel_split;
static struct event *kernel_moved, *zapped;
static long split_before, moved_before;

void thp_setup(void)
{
	pmd_split = event("mapping split", 2);
	folio_split = event("split by debugfs", 1);
	partly = event("mapped in part", 2);
	collapsed = event("collapsed", 4);
	refused = event("collapse refused", 0);
	kernel_split = event("thp_split_page", 1);
	kernel_moved = event("thp_migration_success", 2);
	zapped = event("gone soon", 20);
	split_before = vmstat("thp_split_page");
	moved_before = vmstat("thp_migration_success");
	/* khugepaged collapses as well, if it comes round at all. */
	must_write(KHUGEPAGED "scan_sleep_millisecs", "100");
	must_write(KHUGEPAGED "alloc_sleep_millisecs", "100");
}

/* The kernel's own counters. */
static void read_counters(void)
{
	atomic_store(&kernel_split->count, vmstat("thp_split_page") - split_before);
	atomic_store(&kernel_moved->count, vmstat("thp_migration_success") - moved_before);
}

void thp_finish(void)
{
	must_write(KHUGEPAGED "scan_sleep_millisecs", "10000");
	must_write(KHUGEPAGED "alloc_sleep_millisecs", "60000");
}

static u64 seed_of(u64 generation, u64 i)
{
	return generation << 24 | i << 9;
}

static void check_except(const char *area, u64 generation, u64 step, u64 from)
{
	for (u64 i = 0; i < PAGES; i++)
		if (i % step < from)
			check(area + i * PAGE, seed_of(generation, i), "THP");
}

static void split_mapping(char *area, u64 generation)
{
	if (mprotect(area, SIZE / 2 + PAGE, PROT_READ))
		die("mprotect");
	check_except(area, generation, 512, 512);
	if (mprotect(area, SIZE, PROT_READ | PROT_WRITE))
		die("mprotect");
	count(pmd_split, 1);
}

/* Half of each huge page goes, and comes back as small pages. */
static void drop_halves(char *area, u64 generation)
{
	for (u64 at = 0; at < SIZE; at += HUGE_PAGE)
		if (madvise(area + at + HUGE_PAGE / 2, HUGE_PAGE / 2, MADV_DONTNEED))
			die("MADV_DONTNEED");
	dwell(20000);
	check_except(area, generation, 512, 256);
	for (u64 i = 0; i < PAGES; i++)
		if (i % 512 >= 256)
			fill(area + i * PAGE, seed_of(generation, i));
	count(partly, 1);
}

static void split_folios(const char *area, u64 generation)
{
	char text[80];

	snprintf(text, sizeof(text), "%d,%p,%p", getpid(), area, area + SIZE);
	/* Those that are isolated or pinned right now do not split, and that is no error. */
	if (write_file("/sys/kernel/debug/split_huge_pages", text))
		count(folio_split, 1);
	check_except(area, generation, 512, 512);
}

static void collapse(char *area)
{
	for (u64 at = 0; at < SIZE; at += HUGE_PAGE) {
		if (!madvise(area + at, HUGE_PAGE, MADV_COLLAPSE))
			count(collapsed, 1);
		else if (errno == EAGAIN || errno == EBUSY || errno == ENOMEM || errno == EINVAL)
			count(refused, 1);
		else
			die("MADV_COLLAPSE");
	}
}

void thp_load(unsigned me)
{
	for (u64 generation = 1; !stopping(); generation++) {
		char *area = map_huge(SIZE);

		for (u64 i = 0; i < PAGES; i++)
			fill(area + i * PAGE, seed_of(generation, i));
		publish(me * SLOTS, area, PAGES);
		dwell(50000);
		switch (generation % 3) {
		case 0: split_mapping(area, generation); break;
		case 1: drop_halves(area, generation); break;
		default: split_folios(area, generation); break;
		}
		dwell(50000);
		collapse(area);
		dwell(50000);
		check_except(area, generation, 512, 512);
		munmap(area + PAGE * 7, PAGE);
		check(area + PAGE * 6, seed_of(generation, 6), "THP beside a hole");
		check(area + PAGE * 8, seed_of(generation, 8), "THP beside a hole");
		munmap(area, SIZE);
		read_counters();
	}
	withdraw(me * SLOTS);
}

/*
 * Huge pages that go soon after they came, in parts, while they are on the move. Now and then
 * the mapping is in parts before.
 */
void zap_load(unsigned me)
{
	while (!stopping()) {
		char *area = map_huge(HUGE_PAGE);

		fill(area, 512);
		publish(me * SLOTS, area, HUGE_PAGE / PAGE);
		dwell(8000);
		if (rnd() % 2 && mprotect(area, PAGE, PROT_READ))
			die("mprotect");
		dwell(8000);
		check(area, 512, "THP that goes soon");
		munmap(area + HUGE_PAGE / 2, HUGE_PAGE / 2);
		check(area, 512, "half a THP");
		munmap(area, HUGE_PAGE / 2);
		count(zapped, 1);
	}
	withdraw(me * SLOTS);
}
