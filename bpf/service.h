/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From what a client talks to, to one of the backends behind it. */
#ifndef CALICO_EBPF_SERVICE_H
#define CALICO_EBPF_SERVICE_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "maps.h"
#include "owner.h"

/* A slot that is gone when it is read means that the Service has just shrunk: its frontend says so by now. */
#define SELECT_TRIES 3

enum service_result {
	SERVICE_NONE = 0, /* not an address of a Service */
	SERVICE_SELECTED,
};

/* The key under which a frontend of this tuple's destination stands, and the frontend, or NULL. */
static __always_inline const struct frontend *frontend_at(const struct tuple *tuple, struct frontend_key *key)
{
	const struct frontend *frontend;

	*key = (struct frontend_key){
		.address = tuple->daddr,
		.port_be = tuple->dport_be,
		.protocol = tuple->protocol,
	};
	frontend = bpf_map_lookup_elem(&frontends, key);
	if (frontend || !bpf_map_lookup_elem(&nodes, &tuple->daddr))
		return frontend;
	key->address = (struct address){{0, 0, is_v4(&tuple->daddr) ? V4_MARK : 0, 0}};
	return bpf_map_lookup_elem(&frontends, key);
}

/* Whether a backend is here: one of our pods, or the node itself. */
static __always_inline bool backend_is_local(const struct backend *backend)
{
	return pod_at(&backend->address) || own_address(&backend->address);
}

/*
 * Chooses a backend at random, among this node's alone where `local`.
 * Returns SERVICE_SELECTED with `key` and `backend` filled in, SERVICE_NONE, or -DROP_NO_BACKEND,
 * -DROP_NO_LOCAL_BACKEND or -DROP_NO_SLOT.
 */
static __always_inline int service_select(const struct frontend_key *frontend_key, bool local, struct backend_key *key,
					  struct backend *backend)
{
	for (int i = 0; i < SELECT_TRIES; i++) {
		const struct frontend *frontend = bpf_map_lookup_elem(&frontends, frontend_key);
		struct slot_key slot_key;
		const struct slot *slot;
		const struct backend *found;
		__u32 count;

		if (!frontend)
			return SERVICE_NONE;
		if (!frontend->slot_count)
			return -DROP_NO_BACKEND;
		count = local ? frontend->local_count : frontend->slot_count;
		if (!count)
			return -DROP_NO_LOCAL_BACKEND;
		slot_key.service_id = frontend->service_id;
		slot_key.slot = bpf_get_prandom_u32() % count;
		slot = bpf_map_lookup_elem(&slots, &slot_key);
		if (!slot)
			continue;
		key->backend_id = slot->backend_id;
		found = bpf_map_lookup_elem(&backends, key);
		/* while local slots are rearranged, another node's backend may stand among them */
		if (!found || (local && !backend_is_local(found)))
			continue;
		*backend = *found;
		return SERVICE_SELECTED;
	}
	return -DROP_NO_SLOT;
}

#endif
