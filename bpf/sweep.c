/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Returns the memory of expired flows: an iterator over the flow table, which the controller reads from. It writes a
 * byte for every entry that it meets, so a read of so many bytes is a slice of so many entries. The next one goes on
 * where it ended: in a bucket by the number of entries that were met there, so one behind a removed one may be passed
 * over until the next sweep. Correctness does not wait for it, since expiry is decided at look-up. An object of its
 * own: the kernel takes iterators only where it has BTF.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "table.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The kernel's own structs, as far as they are read here; they are checked against its BTF by their offsets. */
struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_map_elem {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct bpf_map *, map);
	__bpf_md_ptr(const struct tuple *, key);
	__bpf_md_ptr(const struct flow *, value);
};

/* Writes 1 for an entry that it removed, 0 for one that stays. */
SEC("iter/bpf_map_elem")
int sweep(struct bpf_iter__bpf_map_elem *met)
{
	const struct flow *flow = met->value;
	const struct tuple *key = met->key;
	struct tuple expired;
	__u8 removed = 0;

	if (!key || !flow)
		return 0; /* after the last one */
	/* Tracing programs may not ask for the coarse clock, which lags by up to a tick: that early an entry goes. */
	if (flow_expired(flow, bpf_ktime_get_ns())) {
		expired = *key; /* no helper takes the iterator's own */
		removed = !bpf_map_delete_elem(&flows, &expired);
	}
	bpf_seq_write(met->meta->seq, &removed, sizeof(removed));
	return 0;
}
