// SPDX-License-Identifier: Apache-2.0
/*
 * What the parts of the stress program share.
 *
 * One stressor is a few processes: loads, which map memory, do to it what the stressor is
 * about and check its contents; flooders, which call move_phys_pages() on the addresses that
 * the loads have right now and on ones they had before; and the parent, which watches all of
 * them. They speak through `ctl`, which all of them map.
 */
#ifndef STRESS_H
#define STRESS_H

#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

typedef uint64_t u64;

#define PAGE 4096UL
#define MIB (1UL << 20)
#define HUGE_PAGE (2 * MIB)

#define MAX_NODES 16
#define MAX_TARGETS 64
#define MAX_FLOODERS 8
#define MAX_EVENTS 24
#define MAX_ERRNO 134
#define SLOTS 6 /* targets that each load may have */

/* Flags of the call; those above 2^16 only where /sys/kernel/mm/move_phys_pages names them. */
#define MOVE (1U << 1)
#define MOVE_ALL (1U << 2)
#define MEMPOLICY (1U << 16)
#define NONBLOCK (1U << 17)
#define UNMAPPED (1U << 18)
#define SOURCE (1U << 19)
#define REPORT (1U << 20)

/* Memory of a load that the flooders aim at. */
struct target {
	pid_t pid; /* 0: none */
	u64 start, pages;
};

/* What a flooder counts. `entries` is the sum of there, moved and refused. */
struct flooder {
	atomic_ulong started, finished; /* calls */
	u64 entries, stale, there, worst_ns;
	u64 moved[MAX_NODES];	   /* by the node that they moved to */
	u64 refused[MAX_ERRNO];	   /* by errno */
};

/* Something that a load brings about. Too few of them, and the stressor proves nothing. */
struct event {
	char name[24];
	atomic_ulong count;
	u64 need;
};

struct control {
	atomic_bool stop;
	atomic_ulong checked; /* pages whose content was compared */
	atomic_ulong bad;     /* broken promises; the first is told in `why` */
	char why[240];
	struct target targets[MAX_TARGETS];
	struct flooder flooders[MAX_FLOODERS];
	struct event events[MAX_EVENTS];
	unsigned nr_events, nr_flooders;
};

extern struct control *ctl;
extern unsigned seconds;	 /* asked for on the command line */
extern unsigned processes;	 /* that map one page */
extern unsigned fast, slow;	 /* nodes */
extern bool with_move_pages;	 /* the older call in place of ours */

/* How flooders find addresses and where they move them. */
enum { RANDOM_ADDRESSES = 1, FIXED_DIRECTION = 2, NODE_MAY_CHANGE = 4 };

typedef void load_function(unsigned me);

struct stressor {
	const char *name;
	void (*setup)(void); /* declares events */
	void (*finish)(void);
	struct {
		load_function *run;
		unsigned count;
	} loads[4];
	unsigned flooders, how;
};

extern const struct stressor stressors[];

/* common.c */
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);
__attribute__((format(printf, 1, 2))) void broken(const char *format, ...);
u64 now_ns(void);
u64 rnd(void);
void dwell(unsigned most_us);
bool stopping(void);
bool write_file(const char *path, const char *text);
void must_write(const char *path, const char *text);
long read_number(const char *path);
long vmstat(const char *name);
struct event *event(const char *name, u64 need_in_10_s);
void count(struct event *event, u64 n);
void publish(unsigned slot, const void *start, u64 pages);
void withdraw(unsigned slot);
void *map_anon(size_t size);
void *map_huge(size_t size);
void *map_file(const char *path, size_t size);
void fill(void *page, u64 seed);
void check(const void *page, u64 seed, const char *what);
void check_zero(const void *page, const char *what);
void reap(pid_t pid, const char *what);

/* call.c */
void find_call(void);
unsigned known_flags(void);
long move_phys_pages(u64 n, u64 *pages, const int *nodes, int *status, unsigned flags);
void find_blocks(void);
u64 end_of_memory(void);
u64 block_bytes(void);
unsigned blocks_of(unsigned node, unsigned *blocks, unsigned most);
int node_of(u64 address);
unsigned resolve(pid_t pid, u64 start, u64 n, u64 *pages);
int move_one(const void *page, int node, unsigned flags, bool *moved, u64 *ns);

/* flood.c */
void flood(unsigned me, unsigned how);
void flood_with_move_pages(unsigned me, unsigned how);

/* check.c */
int ghosts(void);
int leak(void);

/* loads, in files of their own */
load_function keeper, still_load, file_load, anon_load, thp_load, zap_load, ksm_load, touch_load;
load_function ksm_control, balance_control, offline_control, cpuset_load, cpuset_control;
load_function kill_load, mapped_load;
void file_setup(void), anon_setup(void), thp_setup(void), ksm_setup(void);
void balance_setup(void), offline_setup(void), cpuset_setup(void), kill_setup(void);
void mapped_setup(void);
void thp_finish(void), ksm_finish(void), balance_finish(void), cpuset_finish(void);

#endif
