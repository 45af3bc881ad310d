/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From what a client talks to, to one of the backends behind it. */
#ifndef CALICO_EBPF_SERVICE_H
#define CALICO_EBPF_SERVICE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/* A slot that is gone when it is read means that the Service has just shrunk: its frontend says so by now. */
#define SELECT_TRIES 3

enum service_result {
	SERVICE_NONE = 0, /* not an address of a Service */
	SERVICE_SELECTED,
};

/*
 * Chooses a backend at random.
 * Returns SERVICE_SELECTED with `key` and `backend` filled in, SERVICE_NONE, -DROP_NO_BACKEND or -DROP_NO_SLOT.
 */
static __always_inline int service_select(const struct frontend_key *frontend_key, struct backend_key *key,
					  struct backend *backend)
{
	for (int i = 0; i < SELECT_TRIES; i++) {
		const struct frontend *frontend = bpf_map_lookup_elem(&frontends, frontend_key);
		struct slot_key slot_key;
		const struct slot *slot;
		const struct backend *found;

		if (!frontend)
			return SERVICE_NONE;
		if (!frontend->slot_count)
			return -DROP_NO_BACKEND;
		slot_key.service_id = frontend->service_id;
		slot_key.slot = bpf_get_prandom_u32() % frontend->slot_count;
		slot = bpf_map_lookup_elem(&slots, &slot_key);
		if (!slot)
			continue;
		key->backend_id = slot->backend_id;
		found = bpf_map_lookup_elem(&backends, key);
		if (!found)
			continue;
		*backend = *found;
		return SERVICE_SELECTED;
	}
	return -DROP_NO_SLOT;
}

#endif
