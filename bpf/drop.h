/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Verdicts, and the counting of what does not get through. */
#ifndef CALICO_EBPF_DROP_H
#define CALICO_EBPF_DROP_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/* Not ours, or the host's stack goes on with it: filters of others on the same device still see it. */
#define PASS TC_ACT_UNSPEC

/* Beside negated drop reasons: an echo that the program is to answer. It is no drop. */
#define ECHO_ASKED (-DROP_REASONS)

static __always_inline void count(enum counter counter)
{
	__u32 key = counter;
	__u64 *value = bpf_map_lookup_elem(&counters, &key);

	if (value)
		*value += 1; /* per CPU */
}

/* Counts a packet of so many bytes, which came in or leaves by a device, as dropped. */
static __always_inline void count_drop(__u32 ifindex, enum drop_reason reason, __u32 octets)
{
	struct drop_key key = {.reason = reason, .ifindex = ifindex};
	struct drop_count *total = bpf_map_lookup_elem(&drops, &key);

	if (total) {
		total->packets += 1;
		total->octets += octets;
	} else {
		struct drop_count first = {.packets = 1, .octets = octets};

		bpf_map_update_elem(&drops, &key, &first, BPF_NOEXIST);
	}
}

/* Counts a packet as dropped for `error`, a negated enum drop_reason, and returns the verdict that drops it. */
static __always_inline int drop(const struct __sk_buff *skb, int error)
{
	count_drop(skb->ifindex, -error, skb->len);
	return TC_ACT_SHOT;
}

#endif
