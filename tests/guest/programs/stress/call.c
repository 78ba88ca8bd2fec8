// SPDX-License-Identifier: Apache-2.0
/* The call, where physical memory is, and what a process has of it. */
#include "stress.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#define MAX_BLOCKS 4096

static long number = -1;
static unsigned flags_known;
static u64 block_size;
static int8_t block_node[MAX_BLOCKS]; /* 0: no memory, else node + 1 */
static u64 nr_blocks;

/* The number comes from the kernel that has the call, never from a header. */
void find_call(void)
{
	static const struct {
		const char *name;
		unsigned flag;
	} features[] = {{"mempolicy", MEMPOLICY}, {"nonblock", NONBLOCK}, {"unmapped", UNMAPPED},
			{"source", SOURCE},	  {"report", REPORT}};
	FILE *file = fopen("/sys/kernel/mm/move_phys_pages/features", "re");
	char word[64];

	number = read_number("/sys/kernel/mm/move_phys_pages/number");
	if (!file || number < 0)
		die("this kernel has no move_phys_pages()");
	flags_known = MOVE | MOVE_ALL;
	while (fscanf(file, "%63s", word) == 1)
		for (unsigned i = 0; i < sizeof(features) / sizeof(*features); i++)
			if (!strcmp(word, features[i].name))
				flags_known |= features[i].flag;
	fclose(file);
}

unsigned known_flags(void)
{
	return flags_known;
}

long move_phys_pages(u64 n, u64 *pages, const int *nodes, int *status, unsigned flags)
{
	return syscall(number, n, pages, nodes, status, flags);
}

static void find_blocks_of(unsigned node)
{
	char path[64];
	DIR *dir;
	struct dirent *entry;
	unsigned block;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%u", node);
	dir = opendir(path);
	if (!dir)
		return;
	while ((entry = readdir(dir)))
		if (sscanf(entry->d_name, "memory%u", &block) == 1 && block < MAX_BLOCKS) {
			block_node[block] = node + 1;
			if (block >= nr_blocks)
				nr_blocks = block + 1;
		}
	closedir(dir);
}

/* Which memory block belongs to which node, as sysfs says now. */
void find_blocks(void)
{
	FILE *file = fopen("/sys/devices/system/memory/block_size_bytes", "re");

	if (!file || fscanf(file, "%lx", &block_size) != 1)
		die("no memory blocks");
	fclose(file);
	for (unsigned node = 0; node < MAX_NODES; node++)
		find_blocks_of(node);
}

u64 end_of_memory(void)
{
	return nr_blocks * block_size;
}

u64 block_bytes(void)
{
	return block_size;
}

unsigned blocks_of(unsigned node, unsigned *blocks, unsigned most)
{
	unsigned n = 0;

	for (u64 block = 0; block < nr_blocks && n < most; block++)
		if (block_node[block] == (int)node + 1)
			blocks[n++] = block;
	return n;
}

/* -1 where there is no memory */
int node_of(u64 address)
{
	u64 block = address / block_size;

	return block < nr_blocks ? block_node[block] - 1 : -1;
}

/*
 * The physical addresses of a process's pages from its pagemap; 0 for a page that is not
 * there. Returns how many were read.
 */
unsigned resolve(pid_t pid, u64 start, u64 n, u64 *pages)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	ssize_t got = pread(fd, pages, n * 8, start / PAGE * 8);
	close(fd);
	if (got <= 0)
		return 0;
	for (ssize_t i = 0; i < got / 8; i++)
		pages[i] = pages[i] >> 63 ? (pages[i] & ((1UL << 55) - 1)) * PAGE : 0;
	return got / 8;
}

/*
 * Move a page of our own: the status, whether it moved, and the time that the call took.
 * -EAGAIN, too, while the page is on its way to somewhere.
 */
int move_one(const void *page, int node, unsigned flags, bool *moved, u64 *ns)
{
	u64 address = 0, before, start;
	int status = -EAGAIN;

	*moved = false;
	if (resolve(getpid(), (u64)page, 1, &address) != 1 || !address)
		return -EAGAIN;
	before = address;
	start = now_ns();
	if (move_phys_pages(1, &address, &node, &status, (flags | REPORT) & known_flags()))
		die("move_phys_pages");
	*ns = now_ns() - start;
	*moved = address != before;
	return status;
}
