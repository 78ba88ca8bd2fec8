// SPDX-License-Identifier: Apache-2.0
/*
 * Reverse translation through /proc/PID/maps and /proc/PID/pagemap.
 *
 * It is the competitor of the system call, so it is written to be fast: one large read per chunk
 * of page map, no line of text parsed but the maps, one bit per frame to reject what is not
 * wanted, nothing sorted, large processes first, and an end as soon as all is found. In processes
 * that map far more than they have present, PAGEMAP_SCAN finds the present ranges first.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "translate.h"

#define PM_PRESENT (1ULL << 63)
#define PM_PFN ((1ULL << 55) - 1)
#define CHUNK 16384		/* entries per read: 128 KiB, which stays in the cache */
#define SPARSE 4		/* mapped over present from which PAGEMAP_SCAN pays */
#define RANGES 512
#define FEW 64			/* frames for which it is cheaper to ask first who maps them */
#define PID_BITS 22		/* PID_MAX_LIMIT */

/* include/uapi/linux/fs.h since 6.7; older headers lack it */
struct page_region_arg {
	uint64_t start, end, categories;
};
struct pm_scan_args {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PM_SCAN _IOWR('f', 16, struct pm_scan_args)
#define PM_IS_PRESENT (1 << 3)

struct process {
	pid_t pid;
	unsigned long present;	/* pages */
};

struct scan {
	pagemap_visitor visit;
	void *self;
	size_t read;
	uint64_t entries[CHUNK];
	struct page_region_arg ranges[RANGES];
	char *text;
	size_t text_size;
};

static int larger_first(const void *a, const void *b)
{
	const struct process *p = a, *q = b;

	return p->present < q->present ? 1 : p->present > q->present ? -1 : 0;
}

/* Read a file of /proc into s->text; returns its length, 0 when it is gone. */
static size_t slurp(struct scan *s, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t have = 0;
	ssize_t n;

	if (fd < 0)
		return 0;
	for (;;) {
		if (s->text_size - have < 8192)
			s->text = realloc(s->text, s->text_size += 65536);
		n = read(fd, s->text + have, s->text_size - have - 1);
		if (n <= 0)
			break;
		have += n;
	}
	close(fd);
	s->text[have] = 0;
	return have;
}

static struct process *list_processes(struct scan *s, size_t *n)
{
	struct process *list = NULL;
	size_t room = 0;
	struct dirent *entry;
	char path[64];
	DIR *proc = opendir("/proc");

	*n = 0;
	while (proc && (entry = readdir(proc))) {
		pid_t pid = atoi(entry->d_name);
		unsigned long size, present;

		if (pid <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/statm", pid);
		if (!slurp(s, path) || sscanf(s->text, "%lu %lu", &size, &present) != 2 || !present)
			continue;	/* gone, or a kernel thread */
		if (*n == room)
			list = realloc(list, (room += 512) * sizeof(*list));
		list[(*n)++] = (struct process){ pid, present };
	}
	if (proc)
		closedir(proc);
	qsort(list, *n, sizeof(*list), larger_first);
	return list;
}

/* Returns 0 to end the whole scan. */
static int read_range(struct scan *s, pid_t pid, int pagemap, uint64_t start, uint64_t end)
{
	while (start < end) {
		size_t want = (end - start) >> PAGE_SHIFT;
		ssize_t got;

		if (want > CHUNK)
			want = CHUNK;
		got = pread(pagemap, s->entries, want * 8, (start >> PAGE_SHIFT) * 8);
		if (got < 8)
			return 1;	/* it has exited */
		s->read += got / 8;
		if (!s->visit(s->self, pid, start, s->entries, got / 8))
			return 0;
		start += (got / 8) << PAGE_SHIFT;
	}
	return 1;
}

static int read_present(struct scan *s, pid_t pid, int pagemap, uint64_t start, uint64_t end)
{
	while (start < end) {
		struct pm_scan_args arg = {
			.size = sizeof(arg), .start = start, .end = end,
			.vec = (uintptr_t)s->ranges, .vec_len = RANGES,
			.category_mask = PM_IS_PRESENT, .return_mask = PM_IS_PRESENT,
		};
		int n = ioctl(pagemap, PM_SCAN, &arg);

		if (n < 0)	/* no such ioctl here */
			return read_range(s, pid, pagemap, start, end);
		for (int i = 0; i < n; i++)
			if (!read_range(s, pid, pagemap, s->ranges[i].start, s->ranges[i].end))
				return 0;
		if (arg.walk_end <= start)
			break;
		start = arg.walk_end;
	}
	return 1;
}

static int next_mapping(char **at, uint64_t *start, uint64_t *end)
{
	char *line = *at;

	if (!*line)
		return 0;
	*start = strtoull(line, &line, 16);
	*end = strtoull(line + 1, &line, 16);
	line = strchr(line, '\n');
	*at = line ? line + 1 : strchr(*at, 0);
	return 1;
}

static int scan_process(struct scan *s, const struct process *p)
{
	uint64_t start, end, mapped = 0;
	int go_on = 1, sparse, pagemap;
	char path[64], *at;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", p->pid);
	pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		return 1;
	snprintf(path, sizeof(path), "/proc/%d/maps", p->pid);
	slurp(s, path);
	for (at = s->text; next_mapping(&at, &start, &end); )
		mapped += (end - start) >> PAGE_SHIFT;
	sparse = mapped > SPARSE * p->present;
	for (at = s->text; go_on && next_mapping(&at, &start, &end); ) {
		if (start >> 56)	/* [vsyscall] */
			continue;
		if (sparse && end - start > (2UL << 20))
			go_on = read_present(s, p->pid, pagemap, start, end);
		else
			go_on = read_range(s, p->pid, pagemap, start, end);
	}
	close(pagemap);
	return go_on;
}

size_t scan_processes(pagemap_visitor visit, void *self)
{
	struct scan *s = calloc(1, sizeof(*s));
	struct process *list;
	size_t n, read;

	s->visit = visit;
	s->self = self;
	list = list_processes(s, &n);
	for (size_t i = 0; i < n; i++)
		if (!scan_process(s, &list[i]))
			break;
	read = s->read;
	free(list);
	free(s->text);
	free(s);
	return read;
}

/* --- one batch --- */

static uint32_t *slot_of(const struct search *s, uint64_t pfn)
{
	uint64_t mask = (1UL << s->slot_bits) - 1;
	uint64_t at = (pfn * 0x9e3779b97f4a7c15ULL) >> (64 - s->slot_bits);

	while (s->slots[at] && s->phys[s->slots[at] - 1] >> PAGE_SHIFT != pfn)
		at = (at + 1) & mask;
	return &s->slots[at];
}

void search_start(struct search *s, const uint64_t *phys, size_t n)
{
	memset(s, 0, sizeof(*s));
	s->phys = phys;
	s->n = s->left = n;
	for (size_t i = 0; i < n; i++)
		if (phys[i] >> PAGE_SHIFT > s->max_pfn)
			s->max_pfn = phys[i] >> PAGE_SHIFT;
	for (s->slot_bits = 4; (1UL << s->slot_bits) < 2 * n; )
		s->slot_bits++;
	s->bits = calloc(s->max_pfn / 64 + 1, 8);
	s->slots = calloc(1UL << s->slot_bits, sizeof(*s->slots));
	s->va = malloc(n * sizeof(*s->va));
	s->index = malloc(n * sizeof(*s->index));
	for (size_t i = 0; i < n; i++) {
		uint64_t pfn = phys[i] >> PAGE_SHIFT;

		s->bits[pfn / 64] |= 1ULL << pfn % 64;
		*slot_of(s, pfn) = i + 1;
	}
}

void search_drop_unmapped(struct search *s)
{
	int counts = s->n <= FEW ? open("/proc/kpagecount", O_RDONLY | O_CLOEXEC) : -1;
	uint64_t count;

	if (counts < 0)
		return;
	for (size_t i = 0; i < s->n; i++) {
		uint64_t pfn = s->phys[i] >> PAGE_SHIFT;

		if (pread(counts, &count, 8, pfn * 8) == 8 && !count) {
			s->bits[pfn / 64] &= ~(1ULL << pfn % 64);
			s->left--;
		}
	}
	close(counts);
}

static void found(struct search *s, pid_t pid, uint64_t va, uint64_t pfn)
{
	struct group *last = s->nr_groups ? &s->groups[s->nr_groups - 1] : NULL;

	if (!last || last->pid != pid) {
		if (s->nr_groups == s->max_groups) {
			s->max_groups += 64;
			s->groups = realloc(s->groups, s->max_groups * sizeof(*s->groups));
		}
		last = &s->groups[s->nr_groups++];
		*last = (struct group){ pid, s->found, 0 };
	}
	last->n++;
	s->va[s->found] = (void *)va;
	s->index[s->found++] = *slot_of(s, pfn) - 1;
	s->bits[pfn / 64] &= ~(1ULL << pfn % 64);	/* one process per frame is enough */
	s->left--;
}

int search_visit(void *self, pid_t pid, uint64_t va, const uint64_t *entries, size_t n)
{
	struct search *s = self;

	for (size_t i = 0; i < n; i++) {
		uint64_t pfn = entries[i] & PM_PFN;

		if (!(entries[i] & PM_PRESENT) || pfn > s->max_pfn ||
		    !(s->bits[pfn / 64] >> pfn % 64 & 1))
			continue;
		found(s, pid, va + (i << PAGE_SHIFT), pfn);
		if (!s->left)
			return 0;
	}
	return 1;
}

void search_free(struct search *s)
{
	free(s->bits);
	free(s->slots);
	free(s->va);
	free(s->index);
	free(s->groups);
}

/* --- many batches --- */

void table_start(struct table *t, uint64_t frames)
{
	/* Only what is written takes memory. */
	t->owner = mmap(NULL, frames * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	t->frames = frames;
	if (t->owner == MAP_FAILED)
		abort();
}

int table_visit(void *self, pid_t pid, uint64_t va, const uint64_t *entries, size_t n)
{
	struct table *t = self;

	for (size_t i = 0; i < n; i++) {
		uint64_t pfn = entries[i] & PM_PFN;

		if (entries[i] & PM_PRESENT && pfn < t->frames)
			t->owner[pfn] = ((va >> PAGE_SHIFT) + i) << PID_BITS | pid;
	}
	return 1;
}

pid_t table_find(const struct table *t, uint64_t phys, uint64_t *va)
{
	uint64_t pfn = phys >> PAGE_SHIFT;
	uint64_t owner = pfn < t->frames ? t->owner[pfn] : 0;

	*va = owner >> PID_BITS << PAGE_SHIFT;
	return owner & ((1 << PID_BITS) - 1);
}

void table_free(struct table *t)
{
	munmap(t->owner, t->frames * 8);
}
