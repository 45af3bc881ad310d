/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a CNI executable as a container runtime does, and tells how long each call took.
 *
 *	spawn EXECUTABLE CONFIG
 *
 * CONFIG is a file with the network configuration, a JSON object. A question on standard input, one line:
 *
 *	ADD|DEL CONTAINER-ID NETNS [CONTAINER-ID NETNS ...]
 *
 * starts a call for each pair, all at once; the answer is one line, nanoseconds: until the last call had ended, then
 * until each had. A DEL gets the result of the ADD that stood at the same place as `prevResult`. The clock starts
 *before the first process is made, when all standard inputs and outputs stand ready, and stops when the last was waited
 *for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define CALLS_MAX      64
#define VARIABLES_MAX  64
#define TEXT_BYTES     16384 /* fits a pipe, so that nobody waits for a reader */
#define QUESTION_BYTES 65536
#define CALL_VARIABLES 3

struct call {
	char variables[CALL_VARIABLES][512]; /* CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS */
	char *environment[VARIABLES_MAX];
	int input, output, output_writer;
	pid_t pid;
	int status;
	long long took_ns;
	char result[TEXT_BYTES]; /* of the last call */
};

static struct call calls[CALLS_MAX];
static char config[TEXT_BYTES / 2];
static char *executable;

extern char **environ;

/* Reads the configuration, without the white space at its end. */
static void read_config(const char *path)
{
	FILE *file = fopen(path, "r");
	size_t length;

	if (!file)
		fail(path);
	length = fread(config, 1, sizeof(config) - 1, file);
	while (length && strchr(" \t\r\n", config[length - 1]))
		config[--length] = '\0';
	errno = EINVAL;
	if (!length || config[length - 1] != '}')
		fail(path);
	fclose(file);
}

/* Makes the pipes of a call, its standard input in the first. */
static void make_pipes(struct call *call, const char *text, int length)
{
	int in[2], out[2];

	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || write(in[1], text, length) != length)
		fail("pipe");
	close(in[1]);
	call->input = in[0];
	call->output = out[0];
	call->output_writer = out[1];
}

static void prepare(struct call *call, const char *command, const char *container, const char *netns)
{
	const char *names[CALL_VARIABLES] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS"};
	const char *values[CALL_VARIABLES] = {command, container, netns};
	static char text[2 * TEXT_BYTES];
	int count = 0, length;

	for (int i = 0; i < CALL_VARIABLES; i++) {
		snprintf(call->variables[i], sizeof(call->variables[i]), "%s=%s", names[i], values[i]);
		call->environment[count++] = call->variables[i];
	}
	for (char **variable = environ; *variable && count < VARIABLES_MAX - 1; variable++)
		call->environment[count++] = *variable;
	call->environment[count] = NULL;
	if (strcmp(command, "DEL") || !*call->result)
		length = snprintf(text, sizeof(text), "%s", config);
	else
		length = snprintf(text, sizeof(text), "%.*s,\"prevResult\":%s}", (int)strlen(config) - 1, config,
				  call->result);
	make_pipes(call, text, length);
}

static void start(struct call *call)
{
	char *arguments[] = {executable, NULL};
	posix_spawn_file_actions_t actions;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, call->input, STDIN_FILENO);
	posix_spawn_file_actions_adddup2(&actions, call->output_writer, STDOUT_FILENO);
	errno = posix_spawn(&call->pid, executable, &actions, NULL, arguments, call->environment);
	if (errno)
		fail(executable);
	posix_spawn_file_actions_destroy(&actions);
}

/* Starts all, waits for all; returns when the last ended, after the first was started. */
static long long run(int count)
{
	long long began_ns = now_ns();
	int status;

	for (int i = 0; i < count; i++)
		start(&calls[i]);
	for (int left = count; left; left--) {
		pid_t pid = wait(&status);

		for (int i = 0; i < count; i++) {
			if (calls[i].pid != pid)
				continue;
			calls[i].took_ns = now_ns() - began_ns;
			calls[i].status = status;
		}
	}
	return now_ns() - began_ns;
}

/* Takes the answer of a call; returns 0, or -1 where it failed. */
static int finish(struct call *call)
{
	ssize_t length;

	close(call->input);
	close(call->output_writer);
	length = read(call->output, call->result, sizeof(call->result) - 1);
	call->result[length > 0 ? length : 0] = '\0';
	close(call->output);
	return call->status ? -1 : 0;
}

static void answer(const char *question, int count)
{
	long long total_ns = run(count);
	struct call *failed = NULL;

	for (int i = 0; i < count; i++)
		if (finish(&calls[i]))
			failed = &calls[i];
	if (failed) {
		for (char *c = failed->result; *c; c++)
			if (*c == '\n')
				*c = ' ';
		printf("error: %s: status %d: %s\n", question, failed->status, failed->result);
	} else {
		printf("%lld", total_ns);
		for (int i = 0; i < count; i++)
			printf(" %lld", calls[i].took_ns);
		printf("\n");
	}
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static char question[QUESTION_BYTES];

	errno = EINVAL;
	if (argc != 3)
		fail("spawn EXECUTABLE CONFIG");
	executable = argv[1];
	read_config(argv[2]);
	while (fgets(question, sizeof(question), stdin)) {
		char *command = strtok(question, " \n"), *container, *netns;
		int count = 0;

		while (count < CALLS_MAX && (container = strtok(NULL, " \n")) && (netns = strtok(NULL, " \n")))
			prepare(&calls[count++], command, container, netns);
		answer(command, count);
	}
	return 0;
}
