/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many bytes one way, by one TCP connection or by UDP in large buffers; and the server for it. Over IPv4 or IPv6.
 *
 *	transfer server PORT
 *	transfer client ADDRESS PORT
 *
 * The server says `0` once it can be asked. The client takes a line on standard input, and answers with the nanoseconds
 * until all bytes have come to the other end, and by how many receives they did:
 *
 *	up BYTES		TCP, to the server
 *	down BYTES		TCP, from the server
 *	file-up BYTES		the same of a file in memory, by sendfile
 *	file-down BYTES
 *	udp-up BYTES SEGMENT	datagrams of SEGMENT bytes, to the server, as many to a buffer as UDP_SEGMENT takes
 *	udp-down BYTES SEGMENT	the same from the server
 *
 * Bytes are copied by who receives them, and by who sends them, as most programs do, but for a file's. Of UDP, which
 * has no flow control, no more than WINDOW buffers are under way: a lost datagram is an error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

#define BUFFER_BYTES (1 << 20)
#define BACKLOG      16
/* kernels before 6.9 take 64 datagrams at once, and all of them what an IPv6 header can say */
#define SEGMENTS_MAX 64
#define BATCH_MAX    65000
#define WINDOW       8
#define QUEUE_BYTES  (16 << 20)
#define LOST_S       5

/* What the client sends ahead of TCP's bytes; by UDP, what asks for a buffer, and what tells of a receive. */
struct order {
	char down; /* the server is to send */
	char file;
	unsigned bytes;
	unsigned segment;
};

static char buffer[BUFFER_BYTES];

static void set(int socket, int level, int option, int value)
{
	if (setsockopt(socket, level, option, &value, sizeof(value)))
		fail("setsockopt");
}

/* A socket of either kind with the same behaviour on every machine. */
static int made(int family, int type)
{
	int made = socket(family, type | SOCK_CLOEXEC, 0);

	if (type == SOCK_DGRAM) {
		set(made, SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES);
		set(made, SOL_SOCKET, SO_SNDBUFFORCE, QUEUE_BYTES);
		set(made, IPPROTO_UDP, UDP_GRO, 1);
	} else if (setsockopt(made, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5)) {
		fail("cubic");
	}
	return made;
}

static int memory(void)
{
	int file = memfd_create("bytes", MFD_CLOEXEC);

	if (file < 0 || write(file, buffer, BUFFER_BYTES) != BUFFER_BYTES)
		fail("memfd");
	return file;
}

static void send_all(int to, const struct order *order)
{
	static int file = -1;
	unsigned left = order->bytes;

	if (order->file && file < 0)
		file = memory();
	while (left) {
		size_t part = left < BUFFER_BYTES ? left : BUFFER_BYTES;
		off_t start = 0;
		ssize_t sent = order->file ? sendfile(to, file, &start, part) : send(to, buffer, part, 0);

		if (sent <= 0)
			fail("send");
		left -= sent;
	}
}

/* Returns by how many receives. */
static unsigned receive_all(int from, unsigned bytes)
{
	unsigned receives = 0;

	while (bytes) {
		ssize_t got = recv(from, buffer, bytes < BUFFER_BYTES ? bytes : BUFFER_BYTES, 0);

		if (got <= 0)
			fail("recv");
		bytes -= got;
		receives++;
	}
	return receives;
}

/* Sends a buffer that the device, or who is last on the way, cuts into datagrams. */
static void send_batch(int to, const struct sockaddr_in6 *peer, unsigned bytes, unsigned segment)
{
	socklen_t size = peer ? sizeof(*peer) : 0;

	set(to, IPPROTO_UDP, UDP_SEGMENT, segment);
	if (sendto(to, buffer, bytes, 0, (const struct sockaddr *)peer, size) != (ssize_t)bytes)
		fail("sendto");
	set(to, IPPROTO_UDP, UDP_SEGMENT, 0);
}

static void serve_stream(int listener)
{
	int client = accept(listener, NULL, NULL);
	struct order order;

	if (client < 0)
		fail("accept");
	while (recv(client, &order, sizeof(order), MSG_WAITALL) == sizeof(order)) {
		if (order.down) {
			send_all(client, &order);
		} else {
			order.bytes = receive_all(client, order.bytes);
			send(client, &order, sizeof(order), 0);
		}
	}
	close(client);
}

static void serve_datagram(int server)
{
	struct sockaddr_in6 peer;
	socklen_t size = sizeof(peer);
	struct order order;
	ssize_t got = recvfrom(server, buffer, BUFFER_BYTES, 0, (struct sockaddr *)&peer, &size);

	if (got < 0)
		fail("recvfrom");
	memcpy(&order, buffer, sizeof(order));
	if (got == sizeof(order)) {
		send_batch(server, &peer, order.bytes, order.segment);
	} else {
		order.bytes = got;
		sendto(server, &order, sizeof(order), 0, (struct sockaddr *)&peer, size);
	}
}

static void serve(int port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int listener = made(AF_INET6, SOCK_STREAM), datagrams = made(AF_INET6, SOCK_DGRAM);
	struct pollfd ready[] = {{listener, POLLIN, 0}, {datagrams, POLLIN, 0}};

	set(listener, SOL_SOCKET, SO_REUSEADDR, 1);
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, BACKLOG) ||
	    bind(datagrams, (struct sockaddr *)&address, sizeof(address)))
		fail("bind");
	printf("0\n");
	fflush(stdout);
	for (;;) {
		if (poll(ready, 2, -1) < 0)
			fail("poll");
		if (ready[0].revents)
			serve_stream(listener);
		if (ready[1].revents)
			serve_datagram(datagrams);
	}
}

/* A socket that is connected to the server. */
static int connected(const char *text, int port, int type)
{
	struct sockaddr_in6 peer = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	struct sockaddr_in peer4 = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct sockaddr *to = (struct sockaddr *)&peer;
	socklen_t size = sizeof(peer);
	int client;

	if (inet_pton(AF_INET, text, &peer4.sin_addr) == 1) {
		to = (struct sockaddr *)&peer4;
		size = sizeof(peer4);
	} else if (inet_pton(AF_INET6, text, &peer.sin6_addr) != 1) {
		fail(text);
	}
	client = made(to->sa_family, type);
	if (connect(client, to, size))
		fail("connect");
	return client;
}

/* Returns by how many receives the bytes came to the server, or to the client. */
static unsigned ask_stream(int server, const struct order *order)
{
	struct order told = {0};

	if (send(server, order, sizeof(*order), 0) != sizeof(*order))
		fail("send");
	if (order->down)
		return receive_all(server, order->bytes);
	send_all(server, order);
	if (recv(server, &told, sizeof(told), MSG_WAITALL) != sizeof(told))
		fail("recv");
	return told.bytes;
}

/* The bytes of the next buffer that came to the other end, or to this one. */
static unsigned next_receive(int server, bool down)
{
	struct timeval patience = {.tv_sec = LOST_S};
	struct order told;
	ssize_t got;

	setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	got = recv(server, buffer, BUFFER_BYTES, 0);
	if (got < 0)
		fail("datagrams were lost");
	if (down)
		return got;
	memcpy(&told, buffer, sizeof(told));
	return told.bytes;
}

static unsigned ask_datagrams(int server, const struct order *order)
{
	unsigned segments = BATCH_MAX / order->segment < SEGMENTS_MAX ? BATCH_MAX / order->segment : SEGMENTS_MAX;
	struct order batch = {.down = 1, .bytes = segments * order->segment, .segment = order->segment};
	unsigned sent = 0, arrived = 0, receives = 0;

	while (arrived < order->bytes) {
		while (sent < order->bytes && sent - arrived < WINDOW * batch.bytes) {
			if (order->down)
				send(server, &batch, sizeof(batch), 0);
			else
				send_batch(server, NULL, batch.bytes, batch.segment);
			sent += batch.bytes;
		}
		arrived += next_receive(server, order->down);
		receives++;
	}
	while (arrived < sent) /* what is not waited for would be the next order's */
		arrived += next_receive(server, order->down);
	return receives;
}

static void ask(const char *address, int port, const char *question)
{
	struct order order = {0};
	long long began_ns;
	char how[16];
	unsigned receives;
	bool datagrams;
	int server;

	if (sscanf(question, "%15s %u %u", how, &order.bytes, &order.segment) < 2)
		fail(question);
	datagrams = !strncmp(how, "udp-", 4);
	order.file = !strncmp(how, "file-", 5);
	order.down = strstr(how, "down") != NULL;
	server = connected(address, port, datagrams ? SOCK_DGRAM : SOCK_STREAM);
	began_ns = now_ns();
	receives = datagrams ? ask_datagrams(server, &order) : ask_stream(server, &order);
	printf("%lld %u\n", now_ns() - began_ns, receives);
	fflush(stdout);
	close(server);
}

int main(int argc, char **argv)
{
	char question[64];

	errno = EINVAL;
	if (argc == 3 && !strcmp(argv[1], "server"))
		serve(atoi(argv[2]));
	if (argc != 4)
		fail("transfer server PORT | transfer client ADDRESS PORT");
	while (fgets(question, sizeof(question), stdin))
		ask(argv[2], atoi(argv[3]), question);
	return 0;
}
