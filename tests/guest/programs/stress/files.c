// SPDX-License-Identifier: Apache-2.0
/* File pages, on tmpfs and on a disk, against truncate, unlink, munmap and punched holes. */
#include "stress.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#define PAGES 256UL
#define WHAT "file"

static struct event *truncated, *unlinked, *unmapped, *punched;

void file_setup(void)
{
	truncated = event("truncated", 5);
	unlinked = event("unlinked", 5);
	unmapped = event("unmapped", 5);
	punched = event("punched", 5);
}

static u64 seed_of(u64 generation, u64 i)
{
	return generation << 24 | i << 9;
}

static char *map(int fd)
{
	void *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (area == MAP_FAILED)
		die("mmap of a file");
	return area;
}

static void check_range(const char *area, u64 from, u64 to, u64 generation)
{
	for (u64 i = from; i < to; i++)
		check(area + i * PAGE, seed_of(generation, i), WHAT);
}

static void truncate_half(int fd, const char *area, u64 generation)
{
	if (ftruncate(fd, PAGES / 2 * PAGE))
		die("truncate");
	check_range(area, 0, PAGES / 2, generation);
	if (ftruncate(fd, PAGES * PAGE))
		die("truncate");
	for (u64 i = PAGES / 2; i < PAGES; i++)
		check_zero(area + i * PAGE, WHAT " after truncate");
	count(truncated, 1);
}

static void punch(int fd, const char *area, u64 generation)
{
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGES / 4 * PAGE,
		      PAGES / 2 * PAGE))
		die("punch");
	check_range(area, 0, PAGES / 4, generation);
	for (u64 i = PAGES / 4; i < PAGES * 3 / 4; i++)
		check_zero(area + i * PAGE, WHAT " after a hole was punched");
	check_range(area, PAGES * 3 / 4, PAGES, generation);
	count(punched, 1);
}

/* Some time as page cache alone; then all of it must be there again. */
static char *unmap(unsigned slot, int fd, char *area, u64 generation)
{
	munmap(area, PAGES / 2 * PAGE);
	check_range(area, PAGES / 2, PAGES, generation);
	munmap(area + PAGES / 2 * PAGE, PAGES / 2 * PAGE);
	if (rnd() % 2)
		fdatasync(fd);
	dwell(20000);
	area = map(fd);
	publish(slot, area, PAGES);
	check_range(area, 0, PAGES, generation);
	count(unmapped, 1);
	return area;
}

void file_load(unsigned me)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/stress-file-%u", me % 2 ? "/dev/shm" : "/var/tmp", me);
	for (u64 generation = 1; !stopping(); generation++) {
		int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

		if (fd < 0 || ftruncate(fd, PAGES * PAGE))
			die("%s", path);
		char *area = map(fd);
		for (u64 i = 0; i < PAGES; i++)
			fill(area + i * PAGE, seed_of(generation, i));
		publish(me * SLOTS, area, PAGES);
		dwell(20000);
		switch (generation % 4) {
		case 0: truncate_half(fd, area, generation); break;
		case 1: punch(fd, area, generation); break;
		case 2: area = unmap(me * SLOTS, fd, area, generation); break;
		default:
			if (unlink(path))
				die("unlink");
			dwell(10000);
			check_range(area, 0, PAGES, generation);
			count(unlinked, 1);
		}
		close(fd);
		munmap(area, PAGES * PAGE);
		unlink(path);
	}
	withdraw(me * SLOTS);
}
