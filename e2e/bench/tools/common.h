/* SPDX-License-Identifier: Apache-2.0 */
/* What every tool has: how it fails, and its clock. */
#ifndef E2E_BENCH_COMMON_H
#define E2E_BENCH_COMMON_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Ends the tool with the answer `error: `, and what went wrong. */
static inline void fail(const char *what)
{
	printf("error: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* CLOCK_MONOTONIC. */
static inline long long now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

#endif
