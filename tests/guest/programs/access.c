// SPDX-License-Identifier: Apache-2.0
/*
 * Memory access in patterns, at a rate, with its own throughput: the load of the tests that
 * compare.
 *
 *   access PATTERN SIZE_MIB [--hot MIB] [--pieces N] [--share PERCENT] [--rate OPS]
 *          [--pause USEC] [--node NODE] [--report MSEC]
 *
 * PATTERN is one of
 *   window   reads one word of each page of the hot set, in order, over and over
 *   gups     updates a word of a random page: SHARE percent (default 90) of the updates in the
 *            hot set, the others anywhere
 *   scan     reads one word of each page of all memory, in order, over and over
 *   idle     nothing
 *
 * The hot set of HOT MiB (default 0) is N pieces (default 1) spread over the memory. SIGUSR1
 * replaces the piece that has been hot longest by one that is not hot, if there is room for one.
 * RATE is the most accesses per second, 0 (the default) as many as possible; after each pass over
 * the window it rests for USEC (default 0). NODE is where the pages are put at first; nothing
 * binds them to it afterwards.
 *
 * Says "ready PID ADDRESS BYTES" on stdout, then "hot OFFSET..." with the pieces in bytes, and
 * again after each shift. SIGUSR2 checks that every page still has its content and prints
 * "pages bad N". With --report a line "did MSEC OPS STALL_USEC": time since the start, accesses
 * since then, the longest time between two looks at the clock (64 accesses) since the line before.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define PAGE 4096UL
#define BATCH 64
#define PIECES 64
#define MPOL_DEFAULT 0
#define MPOL_PREFERRED 1

static volatile sig_atomic_t shifts, checks;

static char *area;
static size_t size, piece;
static size_t hot[PIECES]; /* offsets of the pieces, the one that is replaced next first */
static unsigned int pieces = 1;
static size_t next_piece;

static void on_shift(int sig)
{
	(void)sig;
	shifts++;
}

static void on_check(int sig)
{
	(void)sig;
	checks++;
}

static void die(const char *what)
{
	fprintf(stderr, "access: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000UL + t.tv_nsec;
}

static void say_hot(void)
{
	printf("hot");
	for (unsigned int i = 0; i < pieces && piece; i++)
		printf(" %zu", hot[i]);
	printf("\n");
	fflush(stdout);
}

static int is_hot(size_t offset)
{
	for (unsigned int i = 0; i < pieces; i++)
		if (hot[i] == offset)
			return 1;
	return 0;
}

static void shift(void)
{
	size_t places = size / piece;

	if (places <= pieces)
		return;
	/* Far from the one before. */
	next_piece = (next_piece + places / 2 + 1) % places;
	while (is_hot(next_piece * piece))
		next_piece = (next_piece + 1) % places;
	memmove(hot, hot + 1, (pieces - 1) * sizeof(hot[0]));
	hot[pieces - 1] = next_piece * piece;
	say_hot();
}

static unsigned long bad_pages(void)
{
	unsigned long bad = 0;

	for (size_t at = 0; at < size; at += PAGE)
		bad += *(uint64_t *)(area + at) != at + 1;
	return bad;
}

static void fill(long node)
{
	unsigned long mask = node < 0 ? 0 : 1UL << node;

	area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		die("mmap");
	/* The policy of the task, and not for long: one of the mapping would stay with the pages. */
	if (mask && syscall(SYS_set_mempolicy, MPOL_PREFERRED, &mask, 64UL))
		die("set_mempolicy");
	for (size_t at = 0; at < size; at += PAGE)
		*(uint64_t *)(area + at) = at + 1;
	if (mask && syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0UL))
		die("set_mempolicy");
}

static inline uint64_t draw(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* A number below `limit` from the upper half of a random one, without a division. */
static inline uint64_t below(uint64_t random, uint64_t limit)
{
	return (random >> 32) * limit >> 32;
}

static void update_some(unsigned int percent)
{
	static uint64_t state = 88172645463325252UL;
	size_t hot_pages = pieces * piece / PAGE, piece_pages = piece / PAGE;

	for (int i = 0; i < BATCH; i++) {
		uint64_t random = draw(&state);
		size_t at;

		if (below(random << 32, 100) < percent && hot_pages) {
			size_t page = below(random, hot_pages);

			at = hot[page / piece_pages] + page % piece_pages * PAGE;
		} else {
			at = below(random, size / PAGE) * PAGE;
		}
		((uint64_t *)(area + at))[1 + random % 7] ^= random;
	}
}

static void read_some(size_t *at, size_t length, int windowed)
{
	static volatile uint64_t sum;

	for (int i = 0; i < BATCH; i++) {
		size_t offset = windowed ? hot[*at / piece] + *at % piece : *at;

		sum += *(uint64_t *)(area + offset);
		*at += PAGE;
		if (*at >= length)
			*at = 0;
	}
}

static void rest_until(uint64_t then)
{
	struct timespec t = {then / 1000000000UL, then % 1000000000UL};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void run(const char *pattern, unsigned int percent, double rate, long pause_us,
		uint64_t report_ns)
{
	uint64_t start = now_ns(), last = start, due = start + report_ns, stall = 0;
	unsigned long ops = 0, paced = 0;
	uint64_t pace_start = start;
	size_t at = 0;

	for (;;) {
		if (shifts) {
			shifts--;
			if (piece)
				shift();
		}
		if (checks) {
			checks--;
			printf("pages bad %lu\n", bad_pages());
			fflush(stdout);
			last = now_ns();
		}
		if (!strcmp(pattern, "idle")) {
			usleep(100000);
			continue;
		}
		if (!strcmp(pattern, "gups"))
			update_some(percent);
		else if (!strcmp(pattern, "window"))
			read_some(&at, pieces * piece, 1);
		else
			read_some(&at, size, 0);
		ops += BATCH;
		paced += BATCH;

		uint64_t now = now_ns();

		if (now - last > stall)
			stall = now - last;
		if (report_ns && now >= due) {
			printf("did %lu %lu %lu\n", (now - start) / 1000000, ops, stall / 1000);
			fflush(stdout);
			stall = 0;
			due += report_ns;
		}
		/* Rests of 2 ms and more; what a starved machine could not do is not made up for. */
		if (rate > 0) {
			uint64_t then = pace_start + (uint64_t)(paced / rate * 1e9);

			if (then > now + 2000000)
				rest_until(then);
			else if (now > then + 100000000)
				pace_start = now, paced = 0;
		}
		if (pause_us && at < BATCH * PAGE)
			usleep(pause_us);
		last = rate > 0 || pause_us ? now_ns() : now;
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"hot", required_argument, NULL, 'h'},	{"pieces", required_argument, NULL, 'p'},
		{"share", required_argument, NULL, 's'}, {"rate", required_argument, NULL, 'r'},
		{"node", required_argument, NULL, 'n'}, {"report", required_argument, NULL, 't'},
		{"pause", required_argument, NULL, 'u'}, {NULL, 0, NULL, 0},
	};
	long node = -1, report = 0, pause_us = 0;
	size_t hot_size = 0;
	unsigned int percent = 90;
	double rate = 0;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'h': hot_size = strtoul(optarg, NULL, 0) * MIB; break;
		case 'p': pieces = strtoul(optarg, NULL, 0); break;
		case 's': percent = strtoul(optarg, NULL, 0); break;
		case 'r': rate = strtod(optarg, NULL); break;
		case 'n': node = atol(optarg); break;
		case 'u': pause_us = atol(optarg); break;
		case 't': report = atol(optarg); break;
		default: return 2;
		}
	}
	if (argc - optind != 2 || !pieces || pieces > PIECES) {
		fprintf(stderr, "usage: access PATTERN SIZE_MIB [options]\n");
		return 2;
	}
	const char *pattern = argv[optind];

	size = strtoul(argv[optind + 1], NULL, 0) * MIB;
	piece = hot_size / pieces / PAGE * PAGE;
	if (strcmp(pattern, "gups") && strcmp(pattern, "window") && strcmp(pattern, "scan") &&
	    strcmp(pattern, "idle")) {
		fprintf(stderr, "access: no pattern %s\n", pattern);
		return 2;
	}
	if (!size || (piece && size / piece < pieces) || (!piece && !strcmp(pattern, "window"))) {
		fprintf(stderr, "access: the hot set must not be larger than the memory\n");
		return 2;
	}
	fill(node);
	for (unsigned int i = 0; i < pieces && piece; i++)
		hot[i] = size / piece / pieces * i * piece;

	struct sigaction to_shift = {.sa_handler = on_shift}, to_check = {.sa_handler = on_check};
	sigaction(SIGUSR1, &to_shift, NULL);
	sigaction(SIGUSR2, &to_check, NULL);
	printf("ready %d %p %zu\n", getpid(), (void *)area, size);
	say_hot();
	run(pattern, percent, rate, pause_us, report * 1000000UL);
}
