/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the maps of Services say at once: whose an address is, who may use a frontend, whether a backend is there. */
#ifndef CALICO_EBPF_FRONTEND_H
#define CALICO_EBPF_FRONTEND_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/* What a Service has an address as, whatever its ports: flags of its frontends there, or 0. */
static __always_inline __u32 address_of_service(const struct address *address)
{
	const struct frontend_key key = {.address = *address};
	const struct frontend *frontend = bpf_map_lookup_elem(&frontends, &key);

	return frontend ? frontend->flags : 0;
}

/* Whether a client may use a frontend, which was found under `key`. */
static __always_inline bool source_allowed(const struct frontend *frontend, const struct frontend_key *key,
					   const struct address *client)
{
	struct source_key source = {.prefix_bits = 8 * (sizeof(*key) + sizeof(*client))};

	if (!(frontend->flags & FRONTEND_SOURCES))
		return true;
	source.frontend = *key;
	source.address = *client;
	return bpf_map_lookup_elem(&sources, &source);
}

static __always_inline bool backend_exists(__u32 backend_id)
{
	struct backend_key key = {.backend_id = backend_id};

	return bpf_map_lookup_elem(&backends, &key);
}

#endif
