/* SPDX-License-Identifier: Apache-2.0 */
/*
 * calico-ebpf, the CNI executable: hands the call to the CNI server, or runs the one-shot process where there is none.
 *
 * It parses nothing. The server gets the CNI_* variables, standard input and CNI_NETNS as an open descriptor, over a
 * UNIX socket (cni/protocol.py); its answer goes to standard output. A server that cannot be connected to, or hangs up
 * without an answer, is gone: the one-shot process carries out the same call. A server that is alive but slow is not,
 * and no second worker may run beside it: the caller is told to try again.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef TIMEOUT_S
#define TIMEOUT_S 60
#endif

#define RUN_DIR     "/run/calico-ebpf"
#define ONESHOT     "/usr/local/lib/calico-ebpf/oneshot"
#define MAGIC       0x31494e43 /* "CNI1" */
#define LIMIT_BYTES (1 << 20)

extern char **environ;

struct request {
	uint32_t magic;
	uint32_t variables_bytes; /* NAME=VALUE, each ended by a NUL */
	uint32_t input_bytes;
	char data[LIMIT_BYTES]; /* variables, then input */
};

struct answer {
	uint32_t status;
	uint32_t output_bytes;
	char output[LIMIT_BYTES];
};

#define HEADER_BYTES offsetof(struct request, data)

static struct request request = {.magic = MAGIC};
static struct answer answer;

/* The specification's error object; string literals only, for it is also written from a signal handler. */
#define ERROR(code, message) "{\"cniVersion\": \"1.0.0\", \"code\": " #code ", \"msg\": \"" message "\"}\n"

static void fail(const char *error)
{
	ssize_t written = write(STDOUT_FILENO, error, strlen(error));
	_exit(written < 0 ? 2 : 1);
}

static void on_alarm(int signal)
{
	(void)signal;
	fail(ERROR(11, "the CNI server is alive, but did not answer in time"));
}

static void gather_variables(void)
{
	for (char **variable = environ; *variable; variable++) {
		size_t bytes = strlen(*variable) + 1;
		if (strncmp(*variable, "CNI_", 4))
			continue;
		if (request.variables_bytes + bytes > LIMIT_BYTES)
			fail(ERROR(4, "the CNI_* variables are too long"));
		memcpy(request.data + request.variables_bytes, *variable, bytes);
		request.variables_bytes += bytes;
	}
}

static void gather_input(void)
{
	char *input = request.data + request.variables_bytes;
	size_t space = LIMIT_BYTES - request.variables_bytes;
	ssize_t bytes;

	while ((bytes = read(STDIN_FILENO, input + request.input_bytes, space - request.input_bytes)) > 0)
		request.input_bytes += bytes;
	if (bytes < 0)
		fail(ERROR(5, "the network configuration cannot be read from standard input"));
	if (request.input_bytes == space)
		fail(ERROR(5, "the network configuration is too long"));
}

/* Returns a connected socket, or -1. */
static int connect_server(void)
{
	const char *run_dir = getenv("CALICO_EBPF_RUN_DIR");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int length = snprintf(address.sun_path, sizeof(address.sun_path), "%s/cni.sock", run_dir ? run_dir : RUN_DIR);
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (server < 0 || length >= (int)sizeof(address.sun_path) ||
	    connect(server, (struct sockaddr *)&address, sizeof(address)))
		return -1;
	return server;
}

/* Sends the request's header, and with it the descriptor of the network namespace if it can be opened. Returns 0. */
static int send_header(int server)
{
	const char *path = getenv("CNI_NETNS");
	int netns = path && *path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec data = {.iov_base = &request, .iov_len = HEADER_BYTES};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

	if (netns >= 0) {
		memcpy(CMSG_DATA(&control.header), &netns, sizeof(netns));
		message.msg_control = &control;
		message.msg_controllen = sizeof(control.space);
	}
	return sendmsg(server, &message, MSG_NOSIGNAL) == (ssize_t)HEADER_BYTES ? 0 : -1;
}

static int send_all(int server, const char *data, size_t left)
{
	ssize_t bytes = 0;

	for (; left; data += bytes, left -= bytes) {
		bytes = send(server, data, left, MSG_NOSIGNAL);
		if (bytes < 0)
			return -1;
	}
	return 0;
}

/* Returns 0 once the whole answer is there, -1 if the server hung up before. */
static int exchange(int server)
{
	size_t got = 0, header = offsetof(struct answer, output);
	ssize_t bytes;

	if (send_header(server) || send_all(server, request.data, request.variables_bytes + request.input_bytes))
		return -1;
	while ((bytes = recv(server, (char *)&answer + got, sizeof(answer) - got, 0)) > 0)
		got += bytes;
	return got >= header && got - header == answer.output_bytes ? 0 : -1;
}

/* Becomes the one-shot process, with the same standard input. */
static void run_oneshot(void)
{
	char *path = getenv("CALICO_EBPF_ONESHOT");
	char *arguments[] = {path ? path : ONESHOT, NULL};
	const char *input = request.data + request.variables_bytes;
	int memory = memfd_create("cni-input", 0);

	if (memory < 0 || write(memory, input, request.input_bytes) != (ssize_t)request.input_bytes ||
	    lseek(memory, 0, SEEK_SET) || dup2(memory, STDIN_FILENO) < 0)
		fail(ERROR(5, "the network configuration cannot be handed to the one-shot process"));
	close(memory);
	execv(arguments[0], arguments);
	fail(ERROR(11, "the CNI server does not run, and there is no one-shot process to stand in for it"));
}

int main(void)
{
	int server;

	if (!getenv("CNI_COMMAND")) {
		fputs("calico-ebpf: this is the CNI plugin, for container runtimes to execute;"
		      " the command line is /usr/local/bin/calico-ebpf\n",
		      stderr);
		return 1;
	}
	gather_variables();
	gather_input();
	signal(SIGALRM, on_alarm);
	alarm(TIMEOUT_S);
	server = connect_server();
	if (server < 0 || exchange(server)) {
		alarm(0);
		run_oneshot();
	}
	alarm(0);
	if (fwrite(answer.output, 1, answer.output_bytes, stdout) != answer.output_bytes || fflush(stdout))
		return 1;
	return answer.status;
}
