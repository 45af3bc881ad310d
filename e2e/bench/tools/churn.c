/* SPDX-License-Identifier: Apache-2.0 */
/*
 * New connections at a steady rate to many Services, over TCP and IPv4; the servers for them, which tell who they are;
 * and an idle sleeper, which tells how long the machine kept it waiting.
 *
 *	churn server POD FIRST-PORT PORTS
 *	churn client FIRST-ADDRESS ADDRESSES PORT RATE
 *	churn sleeper
 *
 * The server listens on consecutive ports, says `0` once it does, and answers each connection with its number and the
 * port, then closes it: the client's port is free at once, and nobody waits in TIME_WAIT but the server.
 *
 * The client takes seconds on standard input. So long it begins RATE connections a second, each to one of ADDRESSES
 * consecutive addresses by chance, by a clock of its own: a late answer delays no later connection, and what was begun
 * late is made up for. When all have ended it answers with a line of five numbers for each: CLOCK_MONOTONIC ns when it
 * began and when it ended, which address it asked, the port that answered, and the POD; or 0 and a negated errno:
 * ENODATA where the connection was closed without an answer, ETIMEDOUT where nothing came for five seconds.
 *
 * The sleeper takes seconds, too, sleeps a millisecond again and again meanwhile, and answers with the ns by which the
 * longest sleep was too long.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define BACKLOG    4096
#define EVENTS     64
#define SECOND_NS  1000000000LL
#define SLEEP_NS   1000000LL
#define TIMEOUT_NS (5 * SECOND_NS)

struct answer {
	__be16 port_be, pod_be;
};

struct connection {
	long long began_ns, ended_ns; /* the latter 0: it has not */
	unsigned service, port;
	int pod, socket;
};

static struct connection *connections;

static void listen_on(int poll, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = (unsigned long long)port << 32 | listener};

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, BACKLOG) ||
	    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event))
		fail("listen");
}

static void serve(int pod, int first_port, int ports)
{
	int poll = epoll_create1(0);
	struct epoll_event events[EVENTS];

	for (int port = first_port; port < first_port + ports; port++)
		listen_on(poll, port);
	printf("0\n");
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(poll, events, EVENTS, -1);

		for (int i = 0; i < count; i++) {
			struct answer answer = {htons(events[i].data.u64 >> 32), htons(pod)};
			int connection = accept((int)events[i].data.u64, NULL, NULL);

			/* One packet with the end of the connection: close(2) sends it. */
			send(connection, &answer, sizeof(answer), MSG_MORE | MSG_NOSIGNAL);
			close(connection);
		}
	}
}

static void end(struct connection *connection, unsigned port, int pod)
{
	connection->ended_ns = now_ns();
	connection->port = port;
	connection->pod = pod;
	close(connection->socket);
}

static void begin(int poll, unsigned number, unsigned first_address, unsigned addresses, int port)
{
	struct connection *connection = &connections[number];
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
	struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port)};

	connection->service = random() % addresses;
	peer.sin_addr.s_addr = htonl(first_address + connection->service);
	connection->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (connection->socket < 0)
		fail("socket");
	connection->began_ns = now_ns();
	if (connect(connection->socket, (struct sockaddr *)&peer, sizeof(peer)) && errno != EINPROGRESS)
		end(connection, 0, -errno);
	else if (epoll_ctl(poll, EPOLL_CTL_ADD, connection->socket, &event))
		fail("epoll");
}

static void take_answer(struct connection *connection)
{
	struct answer answer;
	ssize_t length = recv(connection->socket, &answer, sizeof(answer), 0);

	if (length == sizeof(answer))
		end(connection, ntohs(answer.port_be), ntohs(answer.pod_be));
	else
		end(connection, 0, length < 0 ? -errno : -ENODATA);
}

/* Ends what has waited too long, and returns the first that has not ended. */
static unsigned expire(unsigned oldest, unsigned made)
{
	for (; oldest < made; oldest++) {
		struct connection *connection = &connections[oldest];

		if (connection->ended_ns)
			continue;
		if (now_ns() - connection->began_ns < TIMEOUT_NS)
			break;
		end(connection, 0, -ETIMEDOUT);
	}
	return oldest;
}

static void ask(unsigned seconds, unsigned first_address, unsigned addresses, int port, unsigned rate)
{
	unsigned total = seconds * rate, made = 0, oldest = 0;
	int poll = epoll_create1(0);
	struct epoll_event events[EVENTS];
	long long began_ns = now_ns();

	connections = calloc(total, sizeof(*connections));
	while (oldest < total) {
		int count = epoll_wait(poll, events, EVENTS, 1);

		for (int i = 0; i < count; i++)
			take_answer(&connections[events[i].data.u32]);
		while (made < total && made < (now_ns() - began_ns) * rate / SECOND_NS)
			begin(poll, made++, first_address, addresses, port);
		oldest = expire(oldest, made);
	}
	for (unsigned i = 0; i < total; i++)
		printf("%lld %lld %u %u %d ", connections[i].began_ns, connections[i].ended_ns, connections[i].service,
		       connections[i].port, connections[i].pod);
	free(connections);
	close(poll);
}

static void sleep_through(unsigned seconds)
{
	long long before_ns = now_ns(), end_ns = before_ns + seconds * SECOND_NS, longest_ns = 0;

	while (before_ns < end_ns) {
		long long after_ns;

		nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
		after_ns = now_ns();
		if (after_ns - before_ns > longest_ns)
			longest_ns = after_ns - before_ns;
		before_ns = after_ns;
	}
	printf("%lld", longest_ns - SLEEP_NS);
}

/* As many sockets as may be: answers that do not come keep theirs. */
static void raise_limit(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
	int is_client = argc == 6 && !strcmp(argv[1], "client");
	char question[32];

	raise_limit();
	if (argc == 5 && !strcmp(argv[1], "server"))
		serve(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
	errno = EINVAL;
	if (!is_client && (argc != 2 || strcmp(argv[1], "sleeper")))
		fail("churn server POD FIRST-PORT PORTS | client FIRST-ADDRESS ADDRESSES PORT RATE | sleeper");
	srandom(now_ns());
	while (fgets(question, sizeof(question), stdin)) {
		if (is_client)
			ask(atoi(question), ntohl(inet_addr(argv[2])), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
		else
			sleep_through(atoi(question));
		printf("\n");
		fflush(stdout);
	}
	return 0;
}
