// SPDX-License-Identifier: Apache-2.0
/*
 * Stress for move_phys_pages(): a storm of one kind, and a flood of calls in it.
 *
 *   stress run NAME SECONDS [--processes N] [--fast NODE] [--slow NODE] [--move-pages]
 *   stress ghosts     pages that nobody has and that are not free
 *   stress leak       keep such a page until stdin ends; prints its block and node
 *   stress list
 *
 * `run` lasts SECONDS of CLOCK_MONOTONIC, and longer until enough has happened to prove
 * something, unless nothing goes on any more. It prints what happened as JSON; its status is
 * 0 when no promise was broken and enough happened.
 */
#include "stress.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define MAX_CHILDREN 32
#define STUCK_NS 300000000000UL /* without any progress */

struct control *ctl;
unsigned seconds = 10, processes = 5000, fast = 0, slow = 1;
bool with_move_pages;

const struct stressor stressors[] = {
	{"files", file_setup, NULL, {{file_load, 3}, {keeper, 1}}, 2, 0},
	{"anon", anon_setup, NULL, {{anon_load, 3}, {keeper, 1}}, 2, 0},
	{"thp", thp_setup, thp_finish, {{thp_load, 2}, {zap_load, 2}, {keeper, 1}}, 2, 0},
	{"ksm", ksm_setup, ksm_finish, {{ksm_load, 3}, {ksm_control, 1}, {keeper, 1}}, 2, 0},
	{"callers", NULL, NULL, {{still_load, 2}}, 4, FIXED_DIRECTION},
	{"balance", balance_setup, balance_finish,
	 {{touch_load, 2}, {balance_control, 1}, {keeper, 1}}, 2, 0},
	{"offline", offline_setup, NULL, {{offline_control, 1}, {still_load, 1}, {keeper, 1}}, 2,
	 NODE_MAY_CHANGE},
	{"cpuset", cpuset_setup, cpuset_finish,
	 {{cpuset_load, 2}, {cpuset_control, 1}, {keeper, 1}}, 2, 0},
	{"random", NULL, NULL, {{still_load, 1}, {keeper, 1}}, 2, RANDOM_ADDRESSES},
	{"kill", kill_setup, NULL, {{kill_load, 1}, {keeper, 1}}, 1, 0},
	{"mapped", mapped_setup, NULL, {{mapped_load, 1}, {keeper, 1}}, 1, 0},
	{NULL, NULL, NULL, {{NULL, 0}}, 0, 0},
};

static pid_t children[MAX_CHILDREN];
static unsigned nr_children;

static void start(void (*run)(unsigned me, unsigned how), load_function *load, unsigned me,
		  unsigned how)
{
	pid_t pid;

	if (nr_children == MAX_CHILDREN)
		die("too many loads");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (run)
			run(me, how);
		else
			load(me);
		exit(0);
	}
	children[nr_children++] = pid;
}

static void start_all(const struct stressor *s)
{
	unsigned me = 0;

	for (unsigned i = 0; i < 4 && s->loads[i].run; i++)
		for (unsigned k = 0; k < s->loads[i].count; k++)
			start(NULL, s->loads[i].run, me++, 0);
	ctl->nr_flooders = s->flooders;
	for (unsigned i = 0; i < s->flooders; i++)
		start(with_move_pages ? flood_with_move_pages : flood, NULL, i, s->how);
}

/* A child that ended: none may before the end, and none in another way than by itself. */
static void child_ended(pid_t pid, int status)
{
	for (unsigned i = 0; i < nr_children; i++)
		if (children[i] == pid) {
			children[i] = children[--nr_children];
			break;
		}
	if (status)
		broken("a load ended with %s %d", WIFSIGNALED(status) ? "signal" : "status",
		       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	else if (!stopping())
		broken("a load ended early");
}

static u64 calls(void)
{
	u64 sum = 0;

	for (unsigned i = 0; i < ctl->nr_flooders; i++)
		sum += atomic_load(&ctl->flooders[i].finished);
	return sum;
}

static u64 moved_to(unsigned node)
{
	u64 sum = 0;

	for (unsigned i = 0; i < ctl->nr_flooders; i++)
		sum += ctl->flooders[i].moved[node];
	return sum;
}

static u64 refused(unsigned code)
{
	u64 sum = 0;

	for (unsigned i = 0; i < ctl->nr_flooders; i++)
		sum += ctl->flooders[i].refused[code];
	return sum;
}

static struct event *all_calls, *up, *down, *stale_gone, *holes;

/* What every stressor needs. */
static void common_events(const struct stressor *s)
{
	all_calls = event("calls", 30);
	/* Where the page itself is what matters there are few of them. */
	bool few = !strcmp(s->name, "mapped") || with_move_pages;
	up = event("moved to the fast node", few ? 1 : 200);
	down = event("moved to the slow node", few ? 1 : 200);
	/* Old addresses, mostly. */
	stale_gone = event("free or unmapped", few || !strcmp(s->name, "callers") ? 0 : 10);
	holes = event("no memory there", s->how & RANDOM_ADDRESSES ? 100 : 0);
}

static void update_common(void)
{
	atomic_store(&all_calls->count, calls());
	atomic_store(&up->count, moved_to(fast));
	atomic_store(&down->count, moved_to(slow));
	atomic_store(&stale_gone->count, refused(ENOENT) + refused(ENODATA));
	atomic_store(&holes->count, refused(ENXIO));
}

static bool enough(void)
{
	for (unsigned i = 0; i < ctl->nr_events; i++)
		if (atomic_load(&ctl->events[i].count) < ctl->events[i].need)
			return false;
	return true;
}

static u64 progress(void)
{
	u64 sum = atomic_load(&ctl->checked);

	for (unsigned i = 0; i < ctl->nr_events; i++)
		sum += atomic_load(&ctl->events[i].count);
	return sum;
}

/* Returns when it has lasted long enough and enough has happened, or something broke. */
static void watch(u64 begin)
{
	u64 last = 0, last_change = begin, told = begin, limit = 4UL * seconds + 300;
	int status;
	pid_t pid;

	while (!atomic_load(&ctl->bad)) {
		u64 now = now_ns(), sum;

		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			child_ended(pid, status);
		update_common();
		sum = progress();
		if (sum != last) {
			last = sum;
			last_change = now;
		}
		if (now - begin >= seconds * 1000000000UL && enough())
			return;
		if (now - last_change > STUCK_NS) {
			broken("nothing goes on any more");
			return;
		}
		if (now - begin > limit * 1000000000UL)
			return;
		if (now - told > 10000000000UL) {
			told = now;
			fprintf(stderr, "%lu s: %lu calls, %lu up, %lu down, %lu pages checked\n",
				(now - begin) / 1000000000UL, calls(), moved_to(fast), moved_to(slow),
				atomic_load(&ctl->checked));
		}
		usleep(100000);
	}
}

static void stop_all(void)
{
	u64 end = now_ns() + STUCK_NS;
	int status;
	pid_t pid;

	atomic_store(&ctl->stop, true);
	while (nr_children) {
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			child_ended(pid, status);
		if (now_ns() > end) {
			broken("%u loads do not end", nr_children);
			for (unsigned i = 0; i < nr_children; i++)
				kill(children[i], SIGKILL);
			return;
		}
		usleep(20000);
	}
}

static void print_codes(void)
{
	const char *comma = "";

	printf(" \"refused\": {");
	for (unsigned code = 1; code < MAX_ERRNO; code++)
		if (refused(code)) {
			printf("%s\"%s\": %lu", comma, strerrorname_np(code), refused(code));
			comma = ", ";
		}
	printf("},\n");
}

static void print_events(void)
{
	printf(" \"events\": {");
	for (unsigned i = 0; i < ctl->nr_events; i++)
		printf("%s\n  \"%s\": [%lu, %lu]", i ? "," : "", ctl->events[i].name,
		       atomic_load(&ctl->events[i].count), ctl->events[i].need);
	printf("\n },\n");
}

static void print_report(const char *name, u64 ns)
{
	u64 entries = 0, stale = 0, there = 0, worst = 0;

	for (unsigned i = 0; i < ctl->nr_flooders; i++) {
		const struct flooder *f = &ctl->flooders[i];

		entries += f->entries;
		stale += f->stale;
		there += f->there;
		worst = f->worst_ns > worst ? f->worst_ns : worst;
	}
	printf("{\"name\": \"%s\", \"seconds\": %.1f, \"calls\": %lu, \"entries\": %lu,\n", name,
	       ns / 1e9, calls(), entries);
	printf(" \"moved\": {\"fast\": %lu, \"slow\": %lu}, \"there\": %lu, \"stale\": %lu,\n",
	       moved_to(fast), moved_to(slow), there, stale);
	print_codes();
	print_events();
	printf(" \"longest_call_ms\": %.1f, \"checked\": %lu, \"bad\": %lu, \"enough\": %s,\n",
	       worst / 1e6, atomic_load(&ctl->checked), atomic_load(&ctl->bad),
	       enough() ? "true" : "false");
	for (char *c = ctl->why; *c; c++)
		if (*c == '"' || *c == '\\' || *c < ' ')
			*c = '\'';
	printf(" \"why\": \"%s\"}\n", ctl->why);
}

static int run(const struct stressor *s)
{
	find_call();
	find_blocks();
	common_events(s);
	if (s->setup)
		s->setup();

	u64 begin = now_ns();
	start_all(s);
	watch(begin);
	u64 lasted = now_ns() - begin;
	update_common();
	stop_all();
	if (s->finish)
		s->finish();
	print_report(s->name, lasted);
	return atomic_load(&ctl->bad) || !enough();
}

static int usage(void)
{
	fprintf(stderr, "usage: stress run NAME SECONDS [--processes N] [--fast NODE] [--slow NODE] "
			"[--move-pages] | stress ghosts | stress leak | stress list\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"processes", required_argument, NULL, 'p'},
						{"fast", required_argument, NULL, 'f'},
						{"slow", required_argument, NULL, 's'},
						{"move-pages", no_argument, NULL, 'm'},
						{NULL, 0, NULL, 0}};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'p': processes = strtoul(optarg, NULL, 0); break;
		case 'f': fast = strtoul(optarg, NULL, 0); break;
		case 's': slow = strtoul(optarg, NULL, 0); break;
		case 'm': with_move_pages = true; break;
		default: return usage();
		}
	}
	argc -= optind;
	argv += optind;
	ctl = mmap(NULL, sizeof(*ctl), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (ctl == MAP_FAILED)
		die("mmap");
	if (argc == 1 && !strcmp(argv[0], "ghosts"))
		return ghosts();
	if (argc == 1 && !strcmp(argv[0], "leak"))
		return leak();
	if (argc == 1 && !strcmp(argv[0], "list")) {
		for (const struct stressor *s = stressors; s->name; s++)
			puts(s->name);
		return 0;
	}
	if (argc != 3 || strcmp(argv[0], "run"))
		return usage();
	seconds = strtoul(argv[2], NULL, 0);
	for (const struct stressor *s = stressors; s->name; s++)
		if (!strcmp(s->name, argv[1]))
			return run(s);
	fprintf(stderr, "stress: no stressor %s\n", argv[1]);
	return 2;
}
