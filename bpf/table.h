/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The table of flows as such: its map, look-up, insertion and removal in its shards, and when an entry counts as
 * absent. */
#ifndef CALICO_EBPF_TABLE_H
#define CALICO_EBPF_TABLE_H

#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "maps.h"

/*
 * Programs: every flow of this node's pods, and those of outside clients, both directions; the settings' size is that
 * of all shards. In shards, so that a sweep can stop between them: one of a million entries holds a CPU for 100 ms. A
 * small table has fewer shards than places, each in several.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, FLOW_SHARDS);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_LRU_HASH);
			__uint(max_entries, 524288 / FLOW_SHARDS);
			__type(key, struct tuple);
			__type(value, struct flow);
		});
} flows SEC(".maps");

/* The shard of a key. Both addresses' last words tell pods apart, IPv6's second ones nodes. */
static __always_inline void *flow_shard(const struct tuple *key)
{
	const __u64 golden = 0x9e3779b97f4a7c15ULL; /* 2^64 / phi: multiplication mixes upwards */
	__u64 hash = (__u64)(key->saddr.word_be[3] ^ key->daddr.word_be[1]) << 32 |
		     (key->daddr.word_be[3] ^ key->saddr.word_be[1]);
	__u32 shard;

	hash = (hash ^ ((__u64)key->sport_be << 16 | key->dport_be) * golden) * golden;
	shard = hash >> (64 - FLOW_SHARD_BITS);
	return bpf_map_lookup_elem(&flows, &shard);
}

static __always_inline struct flow *flow_lookup(const struct tuple *key)
{
	void *shard = flow_shard(key);

	return shard ? bpf_map_lookup_elem(shard, key) : NULL;
}

/* Returns 0 or a negated errno; before 6.4 the kernel returns an int, and does not fill the register's upper half. */
static __always_inline int flow_update(const struct tuple *key, const struct flow *flow, __u64 flags)
{
	void *shard = flow_shard(key);

	return shard ? bpf_map_update_elem(shard, key, flow, flags) : -ENOENT;
}

static __always_inline void flow_delete(const struct tuple *key)
{
	void *shard = flow_shard(key);

	if (shard)
		bpf_map_delete_elem(shard, key);
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
