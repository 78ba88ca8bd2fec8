// SPDX-License-Identifier: Apache-2.0
/* Memory that stays where it is in its processes: what is flooded beside or instead of a storm. */
#include "stress.h"

#include <string.h>

static u64 seed_of(unsigned me, unsigned kind, u64 i)
{
	return ((u64)me + 1) << 40 | (u64)kind << 36 | i << 9;
}

static char *fill_all(char *area, size_t size, unsigned me, unsigned kind)
{
	for (u64 i = 0; i < size / PAGE; i++)
		fill(area + i * PAGE, seed_of(me, kind, i));
	return area;
}

static void check_all(const char *area, size_t size, unsigned me, unsigned kind)
{
	for (u64 i = 0; i < size / PAGE && !stopping(); i++)
		check(area + i * PAGE, seed_of(me, kind, i), "memory that nobody changes");
}

static void hold(unsigned me, const size_t sizes[4])
{
	char *areas[4] = {map_anon(sizes[0]), map_file("/dev/shm", sizes[1]),
			  map_file("/var/tmp", sizes[2]), map_huge(sizes[3])};

	for (unsigned kind = 0; kind < 4; kind++) {
		fill_all(areas[kind], sizes[kind], me, kind);
		publish(me * SLOTS + kind, areas[kind], sizes[kind] / PAGE);
	}
	while (!stopping()) {
		for (unsigned kind = 0; kind < 4; kind++)
			check_all(areas[kind], sizes[kind], me, kind);
		dwell(200000);
	}
	/* What survived until the end, and all of it. */
	for (unsigned kind = 0; kind < 4; kind++)
		for (u64 i = 0; i < sizes[kind] / PAGE; i++)
			check(areas[kind] + i * PAGE, seed_of(me, kind, i), "memory at the end");
}

/* A little of each kind, beside every stressor. */
void keeper(unsigned me)
{
	static const size_t sizes[4] = {MIB, MIB, MIB / 2, HUGE_PAGE};

	hold(me, sizes);
}

/* More of it, where it is what the stressor is about. */
void still_load(unsigned me)
{
	static const size_t sizes[4] = {6 * MIB, 3 * MIB, MIB, 2 * HUGE_PAGE};

	hold(me, sizes);
}
