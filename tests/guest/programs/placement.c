// SPDX-License-Identifier: Apache-2.0
/*
 * Where a process's pages are, asked of the kernel by move_pages(2) without nodes: tierd has
 * no part in the answer.
 *
 *   placement PID ADDRESS BYTES     prints "NODE PAGES" lines; a negative NODE is an errno
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define BATCH 4096

int main(int argc, char **argv)
{
	static void *pages[BATCH];
	static int status[BATCH];
	static unsigned long counts[256]; /* index: status + 128 */

	if (argc != 4) {
		fprintf(stderr, "usage: placement PID ADDRESS BYTES\n");
		return 2;
	}
	pid_t pid = atoi(argv[1]);
	char *address = (char *)strtoul(argv[2], NULL, 0);
	size_t left = strtoul(argv[3], NULL, 0) / PAGE;

	while (left) {
		size_t n = left < BATCH ? left : BATCH;

		for (size_t i = 0; i < n; i++)
			pages[i] = address + i * PAGE;
		if (syscall(SYS_move_pages, pid, n, pages, NULL, status, 0)) {
			fprintf(stderr, "placement: move_pages: %s\n", strerror(errno));
			return 1;
		}
		for (size_t i = 0; i < n; i++)
			counts[(status[i] + 128) & 255]++;
		address += n * PAGE;
		left -= n;
	}
	for (int i = 0; i < 256; i++)
		if (counts[i])
			printf("%d %lu\n", i - 128, counts[i]);
	return 0;
}
