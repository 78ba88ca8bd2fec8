// SPDX-License-Identifier: Apache-2.0
/* Time, chance, files, memory with known contents. */
#include "stress.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

void die(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	fprintf(stderr, "stress: ");
	vfprintf(stderr, format, list);
	fprintf(stderr, ": %s\n", strerror(errno));
	va_end(list);
	exit(1);
}

/* A promise of the kernel's was not kept. The first one is told in the report. */
void broken(const char *format, ...)
{
	va_list list;

	if (atomic_fetch_add(&ctl->bad, 1))
		return;
	va_start(list, format);
	vsnprintf(ctl->why, sizeof(ctl->why), format, list);
	va_end(list);
}

u64 now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000UL + time.tv_nsec;
}

/* xorshift; each process has its own sequence. */
u64 rnd(void)
{
	static u64 state;
	static pid_t owner;

	if (owner != getpid()) {
		owner = getpid();
		state = now_ns() * 2 + 1 + ((u64)owner << 40);
	}
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

void dwell(unsigned most_us)
{
	usleep(1 + rnd() % most_us);
}

bool stopping(void)
{
	return atomic_load(&ctl->stop);
}

bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	int error = errno;

	if (fd >= 0)
		close(fd);
	errno = error;
	return done;
}

void must_write(const char *path, const char *text)
{
	if (!write_file(path, text))
		die("%s < %s", path, text);
}

/* The number that a file begins with; -1 when there is none. */
long read_number(const char *path)
{
	FILE *file = fopen(path, "re");
	long number = -1;

	if (file) {
		if (fscanf(file, "%ld", &number) != 1)
			number = -1;
		fclose(file);
	}
	return number;
}

long vmstat(const char *name)
{
	FILE *file = fopen("/proc/vmstat", "re");
	char key[80];
	long value, found = -1;

	if (!file)
		die("/proc/vmstat");
	while (fscanf(file, "%79s %ld", key, &value) == 2)
		if (!strcmp(key, name))
			found = value;
	fclose(file);
	return found;
}

/*
 * Before the loads are started. A need is what a release kernel does in a part of ten seconds.
 * It grows with the time that was asked for, and less than that: the debug kernel, which the
 * long forms are for, is six times slower.
 */
struct event *event(const char *name, u64 need_in_10_s)
{
	struct event *event = &ctl->events[ctl->nr_events++];
	u64 times = seconds > 60 ? seconds / 60 : 1;

	if (ctl->nr_events > MAX_EVENTS)
		die("too many events");
	snprintf(event->name, sizeof(event->name), "%s", name);
	event->need = need_in_10_s * times;
	return event;
}

void count(struct event *event, u64 n)
{
	atomic_fetch_add(&event->count, n);
}

void publish(unsigned slot, const void *start, u64 pages)
{
	struct target *target = &ctl->targets[slot % MAX_TARGETS];

	target->pid = 0;
	target->start = (u64)start;
	target->pages = pages;
	target->pid = getpid();
}

void withdraw(unsigned slot)
{
	ctl->targets[slot % MAX_TARGETS].pid = 0;
}

void *map_anon(size_t size)
{
	void *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		die("mmap of %zu", size);
	return area;
}

/* Aligned, so that all of it can be huge pages. */
void *map_huge(size_t size)
{
	char *area = map_anon(size + HUGE_PAGE);
	char *start = (char *)(((u64)area + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));

	if (start > area)
		munmap(area, start - area);
	munmap(start + size, area + HUGE_PAGE - start);
	if (madvise(start, size, MADV_HUGEPAGE))
		die("MADV_HUGEPAGE");
	return start;
}

/* Of a file without a name in that directory. */
void *map_file(const char *directory, size_t size)
{
	int fd = open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, size))
		die("a file in %s", directory);
	void *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (area == MAP_FAILED)
		die("mmap of a file in %s", directory);
	close(fd);
	return area;
}

static u64 word(u64 seed, u64 k)
{
	return (seed + k + 1) * 0x9E3779B97F4A7C15UL;
}

/* The seeds of pages that differ must be at least 512 apart. */
void fill(void *page, u64 seed)
{
	for (u64 k = 0; k < PAGE / 8; k++)
		((volatile u64 *)page)[k] = word(seed, k);
}

void check(const void *page, u64 seed, const char *what)
{
	const volatile u64 *words = page;

	atomic_fetch_add(&ctl->checked, 1);
	for (u64 k = 0; k < PAGE / 8; k++) {
		u64 seen = words[k];

		if (seen != word(seed, k)) {
			broken("%s: content lost at %p: word %lu is %#lx, not %#lx", what, page, k,
			       seen, word(seed, k));
			return;
		}
	}
}

void check_zero(const void *page, const char *what)
{
	const volatile u64 *words = page;

	atomic_fetch_add(&ctl->checked, 1);
	for (u64 k = 0; k < PAGE / 8; k++)
		if (words[k]) {
			broken("%s: %p is not zero", what, page);
			return;
		}
}

/* Wait for a child that must end well. */
void reap(pid_t pid, const char *what)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		die("waitpid");
	if (status)
		broken("%s: child ended with %s %d", what, WIFSIGNALED(status) ? "signal" : "status",
		       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}
