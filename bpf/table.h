/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The table of flows as such: its map, and when an entry counts as absent. */
#ifndef CALICO_EBPF_TABLE_H
#define CALICO_EBPF_TABLE_H

#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "maps.h"

/* How often an entry is written again that does not change. */
#define REFRESH_NS SECOND_NS

/* Programs: every flow of this node's pods, and those of outside clients, both directions. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 524288);
	__type(key, struct tuple);
	__type(value, struct flow);
} flows SEC(".maps");

static __always_inline struct flow *flow_lookup(const struct tuple *key)
{
	return bpf_map_lookup_elem(&flows, key);
}

/* Returns 0 or a negated errno; before 6.4 the kernel returns an int, and does not fill the register's upper half. */
static __always_inline int flow_update(const struct tuple *key, const struct flow *flow, __u64 flags)
{
	return bpf_map_update_elem(&flows, key, flow, flags);
}

/* CLOCK_MONOTONIC; to the tick where the kernel tells it so, which costs a tenth. */
static __always_inline __u64 flow_clock(void)
{
	return config.coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

static __always_inline bool flow_expired(const struct flow *flow, __u64 now)
{
	return (__s64)(now - flow->expires_ns) >= 0;
}

#endif
