// SPDX-License-Identifier: Apache-2.0
/*
 * tick CPU MICROSECONDS: run for a moment on that CPU, again and again.
 *
 * QEMU keeps every translation that a program uses until its address space is left, where the
 * processor that it stands for has room for a few MiB of them. A program that never rests would
 * set no accessed bit a second time. With this beside it its translations are as old as
 * MICROSECONDS at most.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
	struct timespec rest;
	cpu_set_t cpus;
	long us;

	if (argc != 3) {
		fprintf(stderr, "usage: tick CPU MICROSECONDS\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus)) {
		perror("tick: sched_setaffinity");
		return 1;
	}
	us = atol(argv[2]);
	rest.tv_sec = us / 1000000;
	rest.tv_nsec = us % 1000000 * 1000;
	for (;;)
		nanosleep(&rest, NULL);
}
