/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Returns the memory of expired flows, a shard at a call: the controller runs it by BPF_PROG_TEST_RUN, cb[0] being the
 * shard. Correctness does not wait for it, since expiry is decided at look-up. An object of its own: it needs
 * bpf_for_each_map_elem(), of kernel 5.13.
 *
 * A run holds its CPU. To meet an entry takes 0.1 us, to remove it another 0.3: a shard that is full, and has expired
 * as a whole, would take 6 ms. So a run stops at a number of removals that adds 0.7 ms, and the controller runs it
 * again; a lower number means more runs, each of which begins at the first bucket. Smaller shards instead would be too
 * small: bpf/loader.py says why.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "table.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct sweep {
	__u64 now;
	__u32 seen;
	__u32 removed;
};

static long expire(void *shard, const struct tuple *key, const struct flow *flow, struct sweep *sweep)
{
	sweep->seen += 1;
	if (flow_expired(flow, sweep->now)) {
		bpf_map_delete_elem(shard, key);
		sweep->removed += 1;
	}
	return sweep->removed >= FLOW_SWEEP_LIMIT;
}

/* Returns how many entries it removed, FLOW_SWEEP_LIMIT at most; leaves in cb[1] how many it met. */
SEC("classifier")
int sweep(struct __sk_buff *skb)
{
	__u32 key = skb->cb[0];
	struct sweep sweep = {.now = flow_clock()};
	void *shard = bpf_map_lookup_elem(&flows, &key);

	if (shard)
		bpf_for_each_map_elem(shard, expire, &sweep, 0);
	skb->cb[1] = sweep.seen;
	return sweep.removed;
}
