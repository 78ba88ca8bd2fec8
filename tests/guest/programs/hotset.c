// SPDX-License-Identifier: Apache-2.0
/*
 * A program with a hot part: the load that the guest tests tier.
 *
 *   hotset SIZE_MIB HOT_MIB [--bind NODE] [--mlock] [--huge] [--file PATH] [--pause USEC]
 *
 * Maps SIZE_MIB, writes every page once, says "ready PID ADDRESS BYTES" on stdout and then
 * reads one word of each page of the hot window for ever, pausing USEC (default 20,000)
 * between passes. HOT_MIB 0 makes it all cold. SIGUSR1 moves the window on by its own length
 * (wrapping round); SIGUSR2 checks every page's content and prints "passes N bad M".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define PAGE 4096UL
#define MPOL_BIND 2

static volatile sig_atomic_t shifts, reports;

static void on_shift(int sig)
{
	(void)sig;
	shifts++;
}

static void on_report(int sig)
{
	(void)sig;
	reports++;
}

static void die(const char *what)
{
	fprintf(stderr, "hotset: %s: %s\n", what, strerror(errno));
	exit(1);
}

static char *map(size_t size, const char *file)
{
	int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;

	if (file) {
		fd = open(file, O_RDWR | O_CREAT, 0600);
		if (fd < 0 || ftruncate(fd, size))
			die(file);
		flags = MAP_SHARED;
	}
	/* Aligned to 2 MiB, so that --huge can have huge pages from the first byte on. */
	char *area = mmap(NULL, size + 2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		die("mmap");
	area = (char *)(((uintptr_t)area + 2 * MIB - 1) & ~(2 * MIB - 1));
	area = mmap(area, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	if (area == MAP_FAILED)
		die("mmap");
	return area;
}

static unsigned long bad_pages(const char *area, size_t size)
{
	unsigned long bad = 0;

	for (size_t at = 0; at < size; at += PAGE)
		bad += *(const uint64_t *)(area + at) != at + 1;
	return bad;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"bind", required_argument, NULL, 'b'}, {"mlock", no_argument, NULL, 'l'},
		{"huge", no_argument, NULL, 'h'},	{"file", required_argument, NULL, 'f'},
		{"pause", required_argument, NULL, 'p'}, {NULL, 0, NULL, 0},
	};
	long node = -1, pause_us = 20000;
	int lock = 0, huge = 0, option;
	const char *file = NULL;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'b': node = atol(optarg); break;
		case 'l': lock = 1; break;
		case 'h': huge = 1; break;
		case 'f': file = optarg; break;
		case 'p': pause_us = atol(optarg); break;
		default: return 2;
		}
	}
	if (argc - optind != 2) {
		fprintf(stderr, "usage: hotset SIZE_MIB HOT_MIB [options]\n");
		return 2;
	}
	size_t size = strtoul(argv[optind], NULL, 0) * MIB;
	size_t hot = strtoul(argv[optind + 1], NULL, 0) * MIB;
	char *area = map(size, file);

	if (huge && madvise(area, size, MADV_HUGEPAGE))
		die("madvise");
	if (node >= 0) {
		unsigned long mask = 1UL << node;

		if (syscall(SYS_mbind, area, size, MPOL_BIND, &mask, 64UL, 0))
			die("mbind");
	}
	for (size_t at = 0; at < size; at += PAGE)
		*(uint64_t *)(area + at) = at + 1;
	if (lock && mlock(area, size))
		die("mlock");

	struct sigaction shift = {.sa_handler = on_shift}, report = {.sa_handler = on_report};
	sigaction(SIGUSR1, &shift, NULL);
	sigaction(SIGUSR2, &report, NULL);
	printf("ready %d %p %zu\n", getpid(), (void *)area, size);
	fflush(stdout);

	size_t start = 0;
	unsigned long passes = 0;
	volatile uint64_t sum = 0;

	for (;;) {
		if (shifts) {
			shifts--;
			start = (start + hot) % size;
			printf("hot %zu\n", start / MIB);
			fflush(stdout);
		}
		if (reports) {
			reports--;
			printf("passes %lu bad %lu\n", passes, bad_pages(area, size));
			fflush(stdout);
		}
		for (size_t at = 0; at < hot; at += PAGE)
			sum += *(uint64_t *)(area + (start + at) % size);
		passes++;
		if (pause_us || !hot)
			usleep(pause_us ? pause_us : 20000);
	}
}
