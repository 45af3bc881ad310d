/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a program knows of the packet in its hands, in a place of its CPU's own. */
#ifndef CALICO_EBPF_WORK_H
#define CALICO_EBPF_WORK_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"

/* What a new flow is to be; the hook that sees its first packet decides. */
struct opening {
	struct tuple to;  /* as what the packet goes on */
	struct way way;   /* how it and those after it leave */
	struct way back;  /* how their answers leave */
	__u32 backend_id; /* 0: not through a Service */
	__u8 flags;       /* of the entry: FLOW_HANDED_OVER or FLOW_FROM_HERE, or 0 */
	__u8 one_way;     /* its answers do not come by here */
	__u8 masquerade;  /* the source port comes from the range of masquerade */
	__u8 pressed;     /* ports are short: that of a flow that is over will do */
};

/* How a packet came in from outside. */
struct arrival {
	struct way sender; /* back to the node that handed it over */
	__u32 handed_over; /* by another node, for an outside client: it goes no further than here */
};

/*
 * What a program knows of its packet. Not on the stack: besides its 512 bytes, the verifier follows every combination
 * of what it knows of a stack's contents through all that comes after, and nothing of a map's.
 */
struct work {
	struct packet packet;
	struct arrival arrival;
	struct opening opening;
	struct tuple twin; /* of a flow that begins: under which its answers are looked for, and the entry there */
	struct flow entry;
	__u64 next_error_ns[2]; /* of this CPU, not of a packet: see within_limit() */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct work));
} work SEC(".maps");

/* NULL: never, but the verifier cannot know. */
static __always_inline struct work *current_work(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&work, &key);
}

/* Work for one packet, which is zeroed; the rest is by who begins a flow. */
static __always_inline struct work *new_work(void)
{
	struct work *found = current_work();

	if (found)
		__builtin_memset(&found->packet, 0, sizeof(found->packet));
	return found;
}

#endif
