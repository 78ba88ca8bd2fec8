// SPDX-License-Identifier: Apache-2.0
/*
 * What tiering does to a process, asked of the kernel at regular times; nobody who is watched
 * has a part in the answer.
 *
 *   watch MSEC PID ADDRESS [--range OFFSET:BYTES]... [--task PID]...
 *
 * Prints a line each MSEC, until it is killed:
 *
 *   MSEC | pages of each range on node 0 ... | counters ... | CPU of each task ...
 *
 * MSEC is the monotonic clock's. Where a page is comes from /proc/PID/pagemap and the nodes'
 * spans in /proc/zoneinfo, which costs a tenth of asking move_pages(2). The counters are those
 * of /proc/vmstat that COUNTERS names. CPU is "USER:SYSTEM" in ticks from /proc/PID/stat, 0:0
 * when the task is gone; the last pair is that of all processors, interrupts in SYSTEM, and then
 * comes watch's own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MOST 16
#define BATCH 8192

static const char *const COUNTERS[] = {
	"pgmigrate_success", "pgmigrate_fail", "pgpromote_success", "pgdemote_kswapd",
	"pgdemote_direct", "numa_hint_faults", "numa_pte_updates",
};
#define N_COUNTERS (sizeof(COUNTERS) / sizeof(COUNTERS[0]))

struct span {
	unsigned long start, end;
};

static struct span fast[MOST];
static int spans;
static char text[1 << 16];

static void die(const char *what)
{
	fprintf(stderr, "watch: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The text of a file of /proc; false when it is gone. */
static int load(const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t n, have = 0;

	if (fd < 0)
		return 0;
	while ((n = read(fd, text + have, sizeof(text) - 1 - have)) > 0)
		have += n;
	close(fd);
	text[have] = 0;
	return n == 0 && have;
}

/* Frames of node 0: of each zone, from start_pfn on as many as it spans. */
static void find_spans(void)
{
	unsigned long node = ~0UL, spanned = 0, start;

	if (!load("/proc/zoneinfo"))
		die("/proc/zoneinfo");
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		if (sscanf(line, "Node %lu, zone", &node) == 1)
			spanned = 0;
		else if (sscanf(line, " spanned %lu", &spanned) == 1)
			continue;
		else if (sscanf(line, " start_pfn: %lu", &start) == 1 && !node && spanned &&
			 spans < MOST)
			fast[spans++] = (struct span){start, start + spanned};
	}
}

static unsigned long on_node_0(int pagemap, unsigned long address, unsigned long bytes)
{
	static uint64_t entries[BATCH];
	unsigned long found = 0;

	for (unsigned long left = bytes / PAGE, at = address / PAGE; left;) {
		size_t n = left < BATCH ? left : BATCH;

		if (pread(pagemap, entries, n * 8, at * 8) != (ssize_t)(n * 8))
			exit(0); /* the process is gone */
		for (size_t i = 0; i < n; i++) {
			unsigned long pfn = entries[i] & ((1UL << 55) - 1);

			if (!(entries[i] >> 63))
				continue;
			for (int s = 0; s < spans; s++)
				found += pfn >= fast[s].start && pfn < fast[s].end;
		}
		at += n;
		left -= n;
	}
	return found;
}

static void say_counters(void)
{
	if (!load("/proc/vmstat"))
		die("/proc/vmstat");
	for (size_t i = 0; i < N_COUNTERS; i++) {
		char wanted[64];
		unsigned long value = 0;

		snprintf(wanted, sizeof(wanted), "\n%s ", COUNTERS[i]);
		char *found = strstr(text, wanted);

		if (found)
			value = strtoul(found + strlen(wanted), NULL, 10);
		printf(" %lu", value);
	}
}

static void say_cpu(const char *task)
{
	unsigned long user = 0, kernel = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%s/stat", task);
	/* The name may contain anything, but the last ")" ends it. */
	if (load(path) && strrchr(text, ')'))
		sscanf(strrchr(text, ')') + 2,
		       "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel);
	printf(" %lu:%lu", user, kernel);
}

static void say_all_cpu(void)
{
	unsigned long user, nice, kernel, idle, wait, irq, soft;

	if (!load("/proc/stat") || sscanf(text, "cpu %lu %lu %lu %lu %lu %lu %lu", &user, &nice,
					  &kernel, &idle, &wait, &irq, &soft) != 7)
		die("/proc/stat");
	printf(" %lu:%lu", user + nice, kernel + irq + soft);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"range", required_argument, NULL, 'r'},
		{"task", required_argument, NULL, 't'},
		{NULL, 0, NULL, 0},
	};
	struct { unsigned long offset, length; } ranges[MOST];
	const char *tasks[MOST];
	int n_ranges = 0, n_tasks = 0, option;
	char path[64];

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'r' && n_ranges < MOST &&
		    sscanf(optarg, "%lu:%lu", &ranges[n_ranges].offset,
			   &ranges[n_ranges].length) == 2)
			n_ranges++;
		else if (option == 't' && n_tasks < MOST)
			tasks[n_tasks++] = optarg;
		else
			return 2;
	}
	if (argc - optind != 3) {
		fprintf(stderr, "usage: watch MSEC PID ADDRESS [options]\n");
		return 2;
	}
	unsigned long every = strtoul(argv[optind], NULL, 0);
	unsigned long address = strtoul(argv[optind + 2], NULL, 0);
	struct timespec due;

	snprintf(path, sizeof(path), "/proc/%s/pagemap", argv[optind + 1]);
	int pagemap = open(path, O_RDONLY);
	if (pagemap < 0)
		die(path);
	find_spans();
	clock_gettime(CLOCK_MONOTONIC, &due);
	for (;;) {
		struct timespec now;

		clock_gettime(CLOCK_MONOTONIC, &now);
		printf("%lu |", now.tv_sec * 1000UL + now.tv_nsec / 1000000);
		for (int i = 0; i < n_ranges; i++)
			printf(" %lu", on_node_0(pagemap, address + ranges[i].offset,
						  ranges[i].length));
		printf(" |");
		say_counters();
		printf(" |");
		for (int i = 0; i < n_tasks; i++)
			say_cpu(tasks[i]);
		say_all_cpu();
		say_cpu("self");
		printf("\n");
		fflush(stdout);
		due.tv_nsec += every * 1000000;
		due.tv_sec += due.tv_nsec / 1000000000;
		due.tv_nsec %= 1000000000;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
	}
}
