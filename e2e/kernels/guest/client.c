/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Real sockets, for a guest that has little else:
 *
 *   client echo PROTOCOL ADDRESS PORT    answers each request with the requester's address and port, a datagram with
 * one of the same size client ask PROTOCOL ADDRESS PORT SECONDS [SOURCE [BYTES]]    sends a request; prints the answer,
 * if it comes in time client believe ADDRESS PORT BACKEND PORT     a Service, and where its backend is to be: TCP, UDP
 * connected and not
 *
 * PROTOCOL is tcp, udp or sctp. Exits with 1 and a line on standard error where something is not as it should be.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define PATIENCE_S  20
#define MESSAGE_MAX 2048

struct place {
	struct sockaddr_storage address;
	socklen_t size;
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static struct place place(const char *address, const char *port)
{
	struct place found = {0};
	struct sockaddr_in *v4 = (struct sockaddr_in *)&found.address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&found.address;

	if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(atoi(port));
		found.size = sizeof(*v4);
	} else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(atoi(port));
		found.size = sizeof(*v6);
	} else {
		fail(address);
	}
	return found;
}

/* "address port" of a socket's end. */
static const char *text(const struct place *place)
{
	static char line[INET6_ADDRSTRLEN + 8];
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)&place->address;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&place->address;
	int family = place->address.ss_family;
	char address[INET6_ADDRSTRLEN] = "?";

	inet_ntop(family, family == AF_INET ? (const void *)&v4->sin_addr : &v6->sin6_addr, address, sizeof(address));
	snprintf(line, sizeof(line), "%s %d", address, ntohs(family == AF_INET ? v4->sin_port : v6->sin6_port));
	return line;
}

static int is_datagram(const char *protocol)
{
	return !strcmp(protocol, "udp");
}

static int open_socket(int family, const char *protocol, int patience_s)
{
	int number = is_datagram(protocol) ? IPPROTO_UDP : !strcmp(protocol, "sctp") ? IPPROTO_SCTP : IPPROTO_TCP;
	int descriptor = socket(family, is_datagram(protocol) ? SOCK_DGRAM : SOCK_STREAM, number);
	struct timeval patience = {.tv_sec = patience_s};
	int one = 1;

	if (descriptor < 0)
		fail(protocol);
	setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	return descriptor;
}

static int bind_socket(const struct place *here, const char *protocol)
{
	int descriptor = open_socket(here->address.ss_family, protocol, PATIENCE_S);

	if (bind(descriptor, (const struct sockaddr *)&here->address, here->size))
		fail("bind");
	if (!is_datagram(protocol) && listen(descriptor, 16))
		fail("listen");
	return descriptor;
}

/* Answers one request, or gives up waiting for it. */
static void serve(int server, const char *protocol)
{
	struct place peer = {.size = sizeof(peer.address)};
	struct sockaddr *address = (struct sockaddr *)&peer.address;
	char request[MESSAGE_MAX];
	const char *answer;

	if (is_datagram(protocol)) {
		ssize_t size = recvfrom(server, request, sizeof(request), 0, address, &peer.size);

		if (size < 0)
			return;
		memset(request, 0, sizeof(request));
		strcpy(request, text(&peer));
		if ((size_t)size < strlen(request))
			size = strlen(request);
		sendto(server, request, size, 0, address, peer.size);
	} else {
		int accepted = accept(server, address, &peer.size);

		if (accepted < 0)
			return;
		if (recv(accepted, request, sizeof(request), 0) > 0) {
			answer = text(&peer);
			send(accepted, answer, strlen(answer), 0);
		}
		close(accepted);
	}
}

static _Noreturn void echo(const char *protocol, const struct place *here)
{
	int server = bind_socket(here, protocol);

	puts("ready");
	fflush(stdout);
	for (;;)
		serve(server, protocol);
}

static int ask(const char *protocol, const struct place *there, int patience_s, const char *source, int size)
{
	static const char request[MESSAGE_MAX];
	int client = open_socket(there->address.ss_family, protocol, patience_s);
	char answer[MESSAGE_MAX + 1] = "";

	if (source && *source) {
		struct place here = place(source, "0");

		if (bind(client, (const struct sockaddr *)&here.address, here.size))
			fail("bind");
	}
	if (connect(client, (const struct sockaddr *)&there->address, there->size))
		fail("connect");
	if (send(client, request, size, 0) != size)
		fail("send");
	if (recv(client, answer, sizeof(answer) - 1, 0) <= 0)
		fail("receive");
	puts(answer);
	return 0;
}

static void expect(const char *what, const struct place *found, const struct place *wanted)
{
	char wish[INET6_ADDRSTRLEN + 8];

	strcpy(wish, text(wanted));
	if (strcmp(text(found), wish)) {
		fprintf(stderr, "%s: %s, expected %s\n", what, text(found), wish);
		exit(1);
	}
}

static void expect_peer(const char *what, int client, const struct place *wanted)
{
	struct place peer = {.size = sizeof(peer.address)};

	if (getpeername(client, (struct sockaddr *)&peer.address, &peer.size))
		fail(what);
	expect(what, &peer, wanted);
}

static void receive(int client, const char *what, struct place *from)
{
	char answer[64];

	from->size = sizeof(from->address);
	if (recvfrom(client, answer, sizeof(answer), 0, (struct sockaddr *)&from->address, &from->size) <= 0)
		fail(what);
}

/* Whoever asks a Service is answered by its backend, and believes to talk to the Service. */
static int believe(const struct place *service, const struct place *backend)
{
	const struct sockaddr *address = (const struct sockaddr *)&service->address;
	int family = service->address.ss_family;
	int server = bind_socket(backend, "tcp"), client = open_socket(family, "tcp", PATIENCE_S);
	struct place from;

	if (connect(client, address, service->size) || send(client, "?", 1, 0) != 1)
		fail("tcp connect");
	serve(server, "tcp");
	receive(client, "tcp receive", &from);
	expect_peer("tcp getpeername", client, service);

	server = bind_socket(backend, "udp");
	client = open_socket(family, "udp", PATIENCE_S);
	if (connect(client, address, service->size) || send(client, "?", 1, 0) != 1)
		fail("udp connect");
	serve(server, "udp");
	receive(client, "udp receive", &from);
	expect("udp recvmsg, connected", &from, service);
	expect_peer("udp getpeername", client, service);

	client = open_socket(family, "udp", PATIENCE_S);
	if (sendto(client, "?", 1, 0, address, service->size) != 1)
		fail("udp sendto");
	serve(server, "udp");
	receive(client, "udp receive", &from);
	expect("udp recvmsg, not connected", &from, service);
	return 0;
}

int main(int count, char **words)
{
	struct place there, backend;

	if (count < 5)
		return 2;
	if (!strcmp(words[1], "believe") && count == 6) {
		there = place(words[2], words[3]);
		backend = place(words[4], words[5]);
		return believe(&there, &backend);
	}
	there = place(words[3], words[4]);
	if (!strcmp(words[1], "echo"))
		echo(words[2], &there);
	if (!strcmp(words[1], "ask") && count > 5)
		return ask(words[2], &there, atoi(words[5]), count > 6 ? words[6] : NULL,
			   count > 7 ? atoi(words[7]) : 1);
	return 2;
}
