/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connect, write one byte, read one byte, close; and the server for it. Both over IPv4 or IPv6, TCP.
 *
 *	connect server PORT
 *	connect client ADDRESS PORT [FIRST-SOURCE-PORT]
 *
 * The server says `0` once it listens. The client takes a number on standard input, makes as many connections, one
 * after the other, each from a source port of its own, and answers with a line of the nanoseconds from connect(2) until
 * the byte was there. Making, binding and closing the socket are not timed. Ports are taken in turn, so that neither
 *the search for a free one nor a connection in TIME_WAIT is what is measured.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

#define FIRST_PORT 1024
#define LAST_PORT  65535
#define BACKLOG    128

static int port = FIRST_PORT; /* the next to be tried */

static void serve(int port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int listener = socket(AF_INET6, SOCK_STREAM, 0), on = 1, connection;
	char byte;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, BACKLOG))
		fail("listen");
	printf("0\n");
	fflush(stdout);
	while ((connection = accept(listener, NULL, NULL)) >= 0) {
		while (read(connection, &byte, 1) == 1)
			if (write(connection, &byte, 1) != 1)
				break;
		close(connection);
	}
	fail("accept");
}

/* Returns the bytes of the socket address; `local` becomes the wildcard of the same family. */
static socklen_t parse(const char *text, int port, struct sockaddr_in6 *peer, struct sockaddr_in6 *local)
{
	struct sockaddr_in *peer4 = (struct sockaddr_in *)peer;

	if (inet_pton(AF_INET, text, &peer4->sin_addr) == 1) {
		local->sin6_family = peer->sin6_family = AF_INET;
		peer4->sin_port = htons(port);
		return sizeof(*peer4);
	}
	if (inet_pton(AF_INET6, text, &peer->sin6_addr) != 1)
		fail(text);
	local->sin6_family = peer->sin6_family = AF_INET6;
	peer->sin6_port = htons(port);
	return sizeof(*peer);
}

/* Returns a socket bound to the next free port; IPv4 and IPv6 keep the port at the same place. */
static int bound(struct sockaddr_in6 *local, socklen_t bytes)
{
	int client = socket(local->sin6_family, SOCK_STREAM, 0);

	for (int tries = FIRST_PORT; tries <= LAST_PORT; tries++) {
		local->sin6_port = htons(port);
		port = port == LAST_PORT ? FIRST_PORT : port + 1;
		if (!bind(client, (struct sockaddr *)local, bytes))
			return client;
	}
	fail("bind");
	return -1;
}

static void ask(int count, struct sockaddr_in6 *peer, struct sockaddr_in6 *local, socklen_t bytes)
{
	for (int i = 0; i < count; i++) {
		int client = bound(local, bytes);
		long long began_ns = now_ns();
		char byte = '?';

		if (connect(client, (struct sockaddr *)peer, bytes) || write(client, &byte, 1) != 1)
			fail("connect");
		if (read(client, &byte, 1) != 1)
			fail("read");
		printf(i ? " %lld" : "%lld", now_ns() - began_ns);
		close(client);
	}
	printf("\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct sockaddr_in6 peer = {0}, local = {0};
	char question[32];
	socklen_t bytes;

	errno = EINVAL;
	if (argc == 3 && !strcmp(argv[1], "server"))
		serve(atoi(argv[2]));
	if (argc < 4 || argc > 5)
		fail("connect server PORT | connect client ADDRESS PORT [FIRST-SOURCE-PORT]");
	if (argc == 5)
		port = atoi(argv[4]);
	bytes = parse(argv[2], atoi(argv[3]), &peer, &local);
	while (fgets(question, sizeof(question), stdin))
		ask(atoi(question), &peer, &local, bytes);
	return 0;
}
