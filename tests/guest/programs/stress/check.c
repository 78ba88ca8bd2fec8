// SPDX-License-Identifier: Apache-2.0
/*
 * Pages that nobody has and that are not free: what a leaked reference leaves behind.
 *
 *   anonymous  on the LRU, neither mapped nor in the swap cache
 *   file       on the LRU and not anonymous, beyond what /proc/vmstat counts as page cache
 *
 * Exact on a machine that does nothing else: each leaked reference is one page here, on
 * whatever node.
 */
#include "stress.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#define BATCH 4096

enum { LRU = 5, SLAB = 7, BUDDY = 10, MMAP = 11, ANON = 12, SWAPCACHE = 13 };

static bool has(u64 flags, int bit)
{
	return flags >> bit & 1;
}

static bool is_ghost(u64 flags)
{
	return has(flags, ANON) && !has(flags, MMAP) && !has(flags, SWAPCACHE) &&
	       !has(flags, BUDDY) && !has(flags, SLAB);
}

int ghosts(void)
{
	static u64 flags[BATCH];
	u64 end, anon = 0, lru_file = 0, first = 0;
	ssize_t got;

	find_blocks();
	end = end_of_memory() / PAGE;
	int fd = open("/proc/kpageflags", O_RDONLY);
	if (fd < 0)
		die("/proc/kpageflags");
	for (u64 pfn = 0; pfn < end; pfn += got / 8) {
		got = pread(fd, flags, sizeof(flags), pfn * 8);
		if (got <= 0)
			break;
		for (ssize_t i = 0; i < got / 8; i++) {
			if (is_ghost(flags[i]) && !anon++)
				first = pfn + i;
			if (has(flags[i], LRU) && !has(flags[i], ANON))
				lru_file++;
		}
	}
	close(fd);
	printf("{\"anon\": %lu, \"first\": %lu, \"file\": %ld}\n", anon, first,
	       (long)lru_file - vmstat("nr_file_pages"));
	return 0;
}

/*
 * What the check must see: an anonymous page of the slow node that is not mapped any more, with
 * a reference that a pipe keeps until stdin ends.
 */
int leak(void)
{
	char *page = map_anon(PAGE);
	int ends[2];
	u64 address = 0, ns;
	bool moved;

	find_call();
	find_blocks();
	fill(page, 512);
	move_one(page, slow, MOVE, &moved, &ns);
	resolve(getpid(), (u64)page, 1, &address);

	struct iovec vector = {page, PAGE};
	if (pipe(ends) || vmsplice(ends[1], &vector, 1, 0) != (ssize_t)PAGE)
		die("vmsplice");
	munmap(page, PAGE);
	printf("%lu %d\n", address / block_bytes(), node_of(address));
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
