// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "holders.h"
#include "translate.h"

#define KPF_BUDDY (1ULL << 10)
#define CHUNK 4096		/* entries of pagemap or kpageflags at a time */

void fail(const char *what)
{
	fprintf(stderr, "bench-syscall: %s: %s\n", what, strerror(errno));
	exit(1);
}

uint64_t random_below(uint64_t n)
{
	static uint64_t x = 88172645463325252ULL;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x % n;
}

static uint64_t stamp(int number, size_t page)
{
	return ((uint64_t)number << 40) + page + 1;
}

/* In the child: map, write, tell where, then check its memory at each byte that comes. */
static void hold(int number, int in, int out, size_t pages, int node)
{
	size_t size = pages * PAGE, bad;
	unsigned long mask = 1UL << node;
	uint64_t said[2];
	char c;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (syscall(SYS_set_mempolicy, MPOL_BIND, &mask, 64))
		fail("set_mempolicy");
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *gone = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED || gone == MAP_FAILED)
		fail("mmap");
	madvise(memory, size, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < pages; i++)
		*(uint64_t *)(memory + i * PAGE) = stamp(number, i);
	munmap(gone, size);
	if (syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0))
		fail("set_mempolicy");
	said[0] = (uintptr_t)memory;
	said[1] = (uintptr_t)gone;
	if (write(out, said, sizeof(said)) != sizeof(said))
		_exit(1);
	while (read(in, &c, 1) == 1) {
		bad = 0;
		for (size_t i = 0; i < pages; i++)
			bad += *(uint64_t *)(memory + i * PAGE) != stamp(number, i);
		if (write(out, &bad, sizeof(bad)) != sizeof(bad))
			break;
	}
	_exit(0);
}

void holders_start(struct holders *h, size_t n, uint64_t bytes, int node)
{
	char path[64];

	h->n = n;
	h->pages_each = bytes / PAGE / n;
	h->all = calloc(n, sizeof(*h->all));
	fflush(stdout);
	for (size_t i = 0; i < n; i++) {
		struct holder *one = &h->all[i];
		int to[2], from[2];
		uint64_t said[2];

		if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
			fail("pipe");
		one->pid = fork();
		if (one->pid < 0)
			fail("fork");
		if (!one->pid) {
			close(to[1]);
			hold(i, to[0], from[1], h->pages_each, node);
		}
		close(to[0]);
		close(from[1]);
		one->in = to[1];
		one->out = from[0];
		if (read(one->out, said, sizeof(said)) != sizeof(said))
			fail("a process could not map its memory");
		one->base = said[0];
		one->gone = said[1];
		snprintf(path, sizeof(path), "/proc/%d/pagemap", one->pid);
		one->pagemap = open(path, O_RDONLY | O_CLOEXEC);
		if (one->pagemap < 0)
			fail(path);
	}
}

size_t holders_check(struct holders *h)
{
	size_t bad, sum = 0;

	for (size_t i = 0; i < h->n; i++) {
		if (write(h->all[i].in, "c", 1) != 1 ||
		    read(h->all[i].out, &bad, sizeof(bad)) != sizeof(bad))
			fail("a process is gone");
		sum += bad;
	}
	return sum;
}

void holders_stop(struct holders *h)
{
	for (size_t i = 0; i < h->n; i++) {
		kill(h->all[i].pid, SIGKILL);
		waitpid(h->all[i].pid, NULL, 0);
		close(h->all[i].in);
		close(h->all[i].out);
		close(h->all[i].pagemap);
	}
	free(h->all);
}

struct holder *page_holder(const struct holders *h, size_t g)
{
	return &h->all[g / h->pages_each];
}

uint64_t page_va(const struct holders *h, size_t g)
{
	return page_holder(h, g)->base + (g % h->pages_each) * PAGE;
}

void page_addresses(const struct holders *h, const uint32_t *g, size_t n, uint64_t *phys)
{
	uint64_t entries[CHUNK], first = 0;
	const struct holder *owner = NULL;
	size_t have = 0;

	for (size_t i = 0; i < n; i++) {
		const struct holder *one = page_holder(h, g[i]);
		uint64_t at = page_va(h, g[i]) >> PAGE_SHIFT;
		size_t want = n < 1024 ? 1 : CHUNK;
		ssize_t got;

		if (one != owner || at - first >= have) {
			got = pread(one->pagemap, entries, want * 8, at * 8);
			if (got < 8)
				fail("pagemap");
			owner = one;
			first = at;
			have = got / 8;
		}
		phys[i] = entries[at - first] >> 63
			? (entries[at - first] & ((1ULL << 55) - 1)) << PAGE_SHIFT : 0;
	}
}

static uint64_t read_number(const char *path, int base)
{
	char text[64] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		fail(path);
	close(fd);
	return strtoull(text, NULL, base);
}

/* First frames of the memory blocks of a node; returns how many. */
static size_t node_blocks(int node, uint64_t *first, size_t room, uint64_t block)
{
	struct dirent *entry;
	size_t n = 0;
	char path[64];
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d", node);
	dir = opendir(path);
	if (!dir)
		fail(path);
	while ((entry = readdir(dir)))
		if (!strncmp(entry->d_name, "memory", 6) && n < room &&
		    entry->d_name[6] >= '0' && entry->d_name[6] <= '9')
			first[n++] = strtoull(entry->d_name + 6, NULL, 10) * block;
	closedir(dir);
	return n;
}

static uint64_t frames_in_block(void)
{
	return read_number("/sys/devices/system/memory/block_size_bytes", 16) >> PAGE_SHIFT;
}

uint64_t frames_in_all(void)
{
	uint64_t first[1024], block = frames_in_block(), end = 0;

	for (int node = 0; node < 2; node++)
		for (size_t i = node_blocks(node, first, 1024, block); i-- > 0; )
			if (first[i] + block > end)
				end = first[i] + block;
	return end;
}

void free_addresses(int node, size_t n, uint64_t *phys)
{
	static int flags = -1;
	uint64_t first[1024], block = frames_in_block(), entries[CHUNK];
	size_t blocks = node_blocks(node, first, 1024, block), found = 0;
	size_t chunks = blocks * (block / CHUNK), start = random_below(chunks);

	if (flags < 0)
		flags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	for (size_t i = 0; i < chunks && found < n; i++) {
		size_t at = (start + i) % chunks;
		uint64_t pfn = first[at / (block / CHUNK)] + at % (block / CHUNK) * CHUNK;

		if (pread(flags, entries, sizeof(entries), pfn * 8) != sizeof(entries))
			fail("kpageflags");
		/* Every second one, so that they do not all lie side by side. */
		for (size_t k = 0; k < CHUNK && found < n; k += 2)
			if (entries[k] & KPF_BUDDY)
				phys[found++] = (pfn + k) << PAGE_SHIFT;
	}
	if (found < n)
		fail("too few free frames");
}
