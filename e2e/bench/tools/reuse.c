/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Short TCP connections, one after the other, to several names of one server in turn, from source ports that the kernel
 * chooses; and the server for it. Over IPv4 or IPv6.
 *
 *	reuse server PORT IDENTITY
 *	reuse client IDENTITY ADDRESS PORT [ADDRESS PORT ...]
 *
 * The server says `0` once it can be asked. The client takes a line `MANNER COUNT` on standard input. The manner says
 * who closes: `server` or `client` first, both at once by `reset`, or the client `hasty`, which does not wait for the
 * server to close as well. It answers, once it has made as many connections, with
 *
 *	failed wrong repeated slowest errno waited
 *
 * how many failed, were answered by another server or as another connection, and were opened by more than one SYN; the
 * slowest one's microseconds; the last failure's errno; how often the kernel had no port yet.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define BACKLOG     1024
#define TARGETS_MAX 8
#define PATIENCE_S  10

enum manner {
	SERVER,
	CLIENT,
	RESET,
	HASTY,
	MANNERS
};

static const char *const names[MANNERS] = {"server", "client", "reset", "hasty"};

/* What either side says once: the server repeats the number, and puts its own identity in. */
struct line {
	long long number;
	int manner;
	int identity;
};

struct target {
	struct sockaddr_in6 address; /* or of IPv4, by its family */
	socklen_t bytes;
};

struct report {
	long failed, wrong, repeated, slowest_us, error, waited;
};

static long long now_us(void)
{
	return now_ns() / 1000;
}

/* Makes close(2) send a reset. */
static void linger_none(int socket)
{
	struct linger none = {.l_onoff = 1};

	setsockopt(socket, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
}

static void be_patient(int socket)
{
	struct timeval patience = {.tv_sec = PATIENCE_S};

	setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
}

/* A client that is gone needs no answer. */
static void answer(int client, int identity)
{
	struct line line;
	char byte;

	be_patient(client);
	if (recv(client, &line, sizeof(line), MSG_WAITALL) == sizeof(line)) {
		line.identity = identity;
		if (line.manner == RESET)
			linger_none(client);
		send(client, &line, sizeof(line), MSG_NOSIGNAL);
		if (line.manner == CLIENT || line.manner == HASTY)
			recv(client, &byte, 1, 0);
	}
	close(client);
}

static void serve(int port, int identity)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int listener = socket(AF_INET6, SOCK_STREAM, 0), on = 1, client;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, BACKLOG))
		fail("listen");
	printf("0\n");
	fflush(stdout);
	while ((client = accept(listener, NULL, NULL)) >= 0)
		answer(client, identity);
	fail("accept");
}

static struct target parse(const char *text, int port)
{
	struct target target = {.address.sin6_family = AF_INET6, .address.sin6_port = htons(port)};
	struct sockaddr_in *v4 = (struct sockaddr_in *)&target.address;

	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		target.address.sin6_family = AF_INET;
		target.bytes = sizeof(*v4);
	} else if (inet_pton(AF_INET6, text, &target.address.sin6_addr) == 1) {
		target.bytes = sizeof(target.address);
	} else {
		fail(text);
	}
	return target;
}

static bool had_to_repeat(int socket)
{
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);

	getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size);
	return info.tcpi_total_retrans;
}

/* A socket that is connected, once the kernel has a port for it; -1: it could not be. */
static int connected(const struct target *target, struct report *report)
{
	long long until_us = now_us() + PATIENCE_S * 1000000LL;

	for (;;) {
		int client = socket(target->address.sin6_family, SOCK_STREAM, 0);

		be_patient(client);
		if (!connect(client, (const struct sockaddr *)&target->address, target->bytes)) {
			report->repeated += had_to_repeat(client);
			return client;
		}
		close(client);
		if (errno != EADDRNOTAVAIL || now_us() > until_us)
			return -1;
		report->waited++;
		usleep(1000);
	}
}

/* Talks over a connection as its manner wants it. Returns 0, or -1 where it failed. */
static int talk(int client, struct line *line)
{
	const enum manner manner = line->manner;
	char byte;

	if (send(client, line, sizeof(*line), MSG_NOSIGNAL) != sizeof(*line))
		return -1;
	errno = ECONNABORTED; /* closed without an answer */
	if (recv(client, line, sizeof(*line), MSG_WAITALL) != sizeof(*line))
		return -1;
	if (manner == CLIENT)
		shutdown(client, SHUT_WR);
	if (manner == SERVER || manner == CLIENT)
		return recv(client, &byte, 1, 0) ? -1 : 0;
	if (manner == RESET)
		linger_none(client);
	return 0;
}

static void ask_once(const struct target *target, struct line line, struct report *report)
{
	const struct line asked = line;
	long long began_us = now_us();
	int client = connected(target, report);
	long took_us;

	if (client < 0 || talk(client, &line)) {
		report->failed++;
		report->error = errno;
	} else if (line.number != asked.number || line.identity != asked.identity) {
		report->wrong++;
	}
	if (client >= 0)
		close(client);
	took_us = now_us() - began_us;
	if (took_us > report->slowest_us)
		report->slowest_us = took_us;
}

static int manner_of(const char *name)
{
	for (int manner = 0; manner < MANNERS; manner++)
		if (!strcmp(name, names[manner]))
			return manner;
	fail(name);
	return MANNERS;
}

static void ask(const char *question, const struct target *targets, int count, int identity)
{
	static long long number;
	struct report report = {0};
	char name[16];
	long times;

	if (sscanf(question, "%15s %ld", name, &times) != 2)
		fail(question);
	for (long i = 0; i < times; i++) {
		struct line line = {.number = ++number, .manner = manner_of(name), .identity = identity};

		ask_once(&targets[i % count], line, &report);
	}
	printf("%ld %ld %ld %ld %ld %ld\n", report.failed, report.wrong, report.repeated, report.slowest_us,
	       report.error, report.waited);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct target targets[TARGETS_MAX];
	char question[64];
	int count = 0;

	errno = EINVAL;
	if (argc == 4 && !strcmp(argv[1], "server"))
		serve(atoi(argv[2]), atoi(argv[3]));
	if (argc < 5 || argc > 3 + 2 * TARGETS_MAX || argc % 2 == 0)
		fail("reuse server PORT IDENTITY | reuse client IDENTITY ADDRESS PORT [ADDRESS PORT ...]");
	for (int at = 3; at < argc; at += 2)
		targets[count++] = parse(argv[at], atoi(argv[at + 1]));
	while (fgets(question, sizeof(question), stdin))
		ask(question, targets, count, atoi(argv[2]));
	return 0;
}
