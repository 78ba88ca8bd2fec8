// SPDX-License-Identifier: Apache-2.0
/*
 * Memory of the caller: pages that only it has (Private_Dirty of /proc/self/smaps_rollup, which is
 * exact; VmHWM may be off by some hundred KiB) in a process of its own, whose allocator gives
 * nothing back. So what is there at the end was needed at once, or could not be used again.
 *
 * Memory of the kernel: the most that kmalloc() and vmalloc() had out to the caller at a time, by
 * their trace events.
 */
#define _GNU_SOURCE
#include <linux/mempolicy.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scratch.h"
#include "ways.h"

#define TRACING "/sys/kernel/tracing/"
#define SLOTS (1U << 16)

static const char *const ways[] = { "phys", "known", "scan", "table" };
enum { PHYS, KNOWN, SCAN, TABLE };

static void put(const char *path, const char *text)
{
	FILE *file = fopen(path, "we");

	if (!file || fputs(text, file) < 0 || fclose(file))
		fail(path);
}

static long private_bytes(void)
{
	FILE *file = fopen("/proc/self/smaps_rollup", "re");
	char line[256];
	long kib = -1;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "Private_Dirty: %ld", &kib) == 1)
			break;
	if (kib < 0)
		fail("smaps_rollup");
	fclose(file);
	return kib * 1024;
}

static void *copy(const void *from, size_t n, size_t size)
{
	return memcpy(malloc(n * size), from, n * size);
}

/* What a program has that goes this way, in arrays of its own. Nothing is freed: see above. */
static void go(int way, const struct batches *from)
{
	struct batches b = *from;
	size_t n = b.calls * b.n;
	struct table t;

	b.status = copy(from->status, n, sizeof(*b.status));
	if (way == KNOWN)
		b.va = copy(from->va, n, sizeof(*b.va));
	else
		b.phys = copy(from->phys, n, sizeof(*b.phys));
	if (way == PHYS || way == KNOWN)
		b.nodes = copy(from->nodes, n, sizeof(*b.nodes));
	switch (way) {
	case PHYS:
		move_phys(&b);
		break;
	case KNOWN:
		b.groups = copy(from->groups, b.group_of[b.calls], sizeof(*b.groups));
		move_known(&b);
		break;
	case SCAN:
		move_scanned(&b);
		break;
	case TABLE:
		table_start(&t, frames_in_all());
		scan_processes(table_visit, &t);
		move_tabled(&b, &t);
		break;
	}
}

static void child(int way, const struct batches *b, int in, int out)
{
	char c;
	long before, used;

	mallopt(M_MMAP_MAX, 0);
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
	free(malloc(1 << 16));
	call_number();
	private_bytes();
	before = private_bytes();
	if (write(out, "r", 1) != 1 || read(in, &c, 1) != 1)
		_exit(1);
	go(way, b);
	used = private_bytes() - before;
	if (write(out, &used, sizeof(used)) != sizeof(used))
		_exit(1);
	_exit(0);
}

struct slot {
	unsigned long long ptr;
	size_t bytes;
};

/* Follow one event; `live` is what is out. */
static void follow(const char *line, struct slot *slots, size_t *live)
{
	const char *ptr = strstr(line, " ptr="), *bytes = strstr(line, "bytes_alloc=");
	const char *area = strstr(line, "alloc_vmap_area: "), *size = strstr(line, "size=");
	unsigned long long p = ptr ? strtoull(ptr + 5, NULL, 16) : 0;
	size_t at = (p * 0x9e3779b97f4a7c15ULL) >> 48;

	if (area && size) {
		*live += strtoull(size + 5, NULL, 10);
		return;
	}
	if (!p)
		return;
	while (slots[at].ptr && slots[at].ptr != p)
		at = (at + 1) % SLOTS;
	*live -= slots[at].bytes;
	slots[at] = (struct slot){ p, bytes ? strtoull(bytes + 12, NULL, 10) : 0 };
	*live += slots[at].bytes;
}

static size_t traced_peak(void)
{
	FILE *file = fopen(TRACING "trace", "re");
	struct slot *slots = calloc(SLOTS, sizeof(*slots));
	size_t live = 0, peak = 0;
	char line[512];

	if (!file)
		fail(TRACING "trace");
	while (fgets(line, sizeof(line), file)) {
		if (*line == '#')
			continue;
		follow(line, slots, &live);
		peak = live > peak ? live : peak;
	}
	fclose(file);
	free(slots);
	return peak;
}

static void trace(pid_t pid)
{
	char text[32];

	snprintf(text, sizeof(text), "%d\n", pid);
	put(TRACING "tracing_on", "0\n");
	put(TRACING "trace", "\n");
	put(TRACING "set_event_pid", text);
	put(TRACING "events/kmem/kmalloc/enable", "1\n");
	put(TRACING "events/kmem/kfree/enable", "1\n");
	if (!access(TRACING "events/vmalloc/alloc_vmap_area/enable", W_OK))
		put(TRACING "events/vmalloc/alloc_vmap_area/enable", "1\n");
	put(TRACING "tracing_on", "1\n");
}

static void measure_one(const struct holders *h, int way, size_t n)
{
	int to[2], from[2];
	struct batches b;
	long used;
	char c;

	batches_choose(&b, h, 1, n, n);
	batches_prepare(&b, h, SLOW, FAST);
	if (pipe(to) || pipe(from))
		fail("pipe");
	fflush(stdout);
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	if (!pid)
		child(way, &b, to[0], from[1]);
	if (read(from[0], &c, 1) != 1)
		fail("the measured process ended");
	trace(pid);
	if (write(to[1], "g", 1) != 1 || read(from[0], &used, sizeof(used)) != sizeof(used))
		fail("the measured process ended");
	put(TRACING "tracing_on", "0\n");
	put(TRACING "events/enable", "0\n");
	waitpid(pid, NULL, 0);
	printf("{\"kind\": \"memory\", \"processes\": %zu, \"way\": \"%s\", \"batch\": %zu,"
	       " \"user_bytes\": %ld, \"kernel_bytes\": %zu}\n", h->n, ways[way], n, used,
	       traced_peak());
	batches_prepare(&b, h, FAST, SLOW);
	move_known(&b);
	batches_free(&b);
	for (int i = 0; i < 2; i++) {
		close(to[i]);
		close(from[i]);
	}
}

void measure_memory(const struct holders *h, char **words, size_t n)
{
	put(TRACING "buffer_size_kb", "8192\n");
	for (size_t i = 0; i < n; i++)
		for (int way = PHYS; way <= TABLE; way++)
			measure_one(h, way, strtoull(words[i], NULL, 10));
}
