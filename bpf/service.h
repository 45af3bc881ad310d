/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From what a client talks to, to one of the backends behind it. */
#ifndef CALICO_EBPF_SERVICE_H
#define CALICO_EBPF_SERVICE_H

#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "config.h"
#include "frontend.h"
#include "maglev.h"
#include "maps.h"
#include "owner.h"

/*
 * A slot that is gone when it is read means that the Service has just shrunk: its frontend says so by now. And what was
 * claimed first by another packet of the same client is found when it is looked for again.
 */
#define SELECT_TRIES 3

enum service_result {
	SERVICE_NONE = 0, /* not an address of a Service */
	SERVICE_SELECTED,
	SERVICE_AGREED, /* selected as every node would: by the table, or as the client has it by affinity here */
};

/* Which of a frontend's backends are chosen from. */
enum service_set {
	SERVICE_CLUSTER = 0, /* the Cluster set */
	SERVICE_LOCAL,       /* the Local set */
	SERVICE_HERE,        /* the Local set, seen to be here: what is not to be sent on */
	SERVICE_NOT_OWN = 4, /* added to a set: but for backends in the host's own network */
	SERVICE_AGREE = 8,   /* added to a set: by the frontend's Maglev table, where it has one */
};

/* The key under which a frontend of this tuple's destination stands, and the frontend, or NULL. */
static __always_inline const struct frontend *frontend_at(const struct tuple *tuple, struct frontend_key *key)
{
	const struct frontend *frontend;
	const struct node *node;

	*key = (struct frontend_key){
		.address = tuple->daddr,
		.port_be = tuple->dport_be,
		.protocol = tuple->protocol,
	};
	frontend = bpf_map_lookup_elem(&frontends, key);
	if (frontend && key->port_be)
		return frontend;
	node = node_at(&tuple->daddr);
	/* echo: some load balancers hand out nodes' addresses, and who asks a node wants to hear of the node */
	if (frontend)
		return node ? NULL : frontend;
	if (!node)
		return NULL;
	key->address = (struct address){{0, 0, is_v4(&tuple->daddr) ? V4_MARK : 0, 0}};
	frontend = bpf_map_lookup_elem(&frontends, key);
	if (!frontend)
		return NULL;
	/* another node's host port of that number is another pod's, or nobody's */
	if (frontend->flags & FRONTEND_HOST_PORT)
		return node->flags & (NODE_OWN | NODE_MAPPED) ? frontend : NULL;
	return node->flags & NODE_NO_NODE_PORTS ? NULL : frontend;
}

/*
 * As frontend_at, for what pods and processes of this node ask. At another node's NodePort under externalTrafficPolicy
 * Local they are clients from outside, whom that node judges: NULL, the packet goes there as it is.
 */
static __always_inline const struct frontend *frontend_for_own(const struct tuple *tuple, struct frontend_key *key)
{
	const struct frontend *frontend = frontend_at(tuple, key);

	if (frontend && frontend->flags & FRONTEND_LOCAL && !same_address(&key->address, &tuple->daddr) &&
	    !leads_here(&tuple->daddr))
		return NULL;
	return frontend;
}

/* What they are given: internalTrafficPolicy is for them, externalTrafficPolicy is not. */
static __always_inline enum service_set set_for_own(const struct frontend *frontend)
{
	const __u32 internal_local = FRONTEND_CLUSTER_IP | FRONTEND_LOCAL;

	return (frontend->flags & internal_local) == internal_local ? SERVICE_LOCAL : SERVICE_CLUSTER;
}

/* Copies a backend, if it exists and, where `local`, is here; `not_own`: and not the host itself. */
static __always_inline bool take_backend(const struct backend_key *key, bool local, bool not_own,
					 struct backend *backend)
{
	const struct backend *found = bpf_map_lookup_elem(&backends, key);

	if (!found || (local && !is_here(&found->address)) || (not_own && own_address(&found->address)))
		return false;
	*backend = *found;
	return true;
}

/*
 * The backend that a client has by session affinity, whose time begins anew; false: none, or one that is void, and that
 * is forgotten: it has timed out, its backend is gone, or is not of this set.
 */
static __always_inline bool affinity_take(const struct affinity_key *client, __u32 timeout_s, enum service_set set,
					  bool not_own, struct backend_key *key, struct backend *backend)
{
	struct affinity *affinity = bpf_map_lookup_elem(&affinities, client);
	__u64 now = bpf_ktime_get_ns();

	if (!affinity)
		return false;
	key->backend_id = affinity->backend_id;
	/* signed: on another CPU it may just have been seen later */
	if ((__s64)(now - affinity->seen_ns) < (__s64)(timeout_s * SECOND_NS) &&
	    take_backend(key, set != SERVICE_CLUSTER, not_own, backend) &&
	    (set != SERVICE_CLUSTER || !(backend->flags & BACKEND_APART))) {
		affinity->seen_ns = now;
		return true;
	}
	bpf_map_delete_elem(&affinities, client);
	return false;
}

/* Gives a client a backend by session affinity; false: another packet of its was first, and has given it one. */
static __always_inline bool affinity_claim(const struct affinity_key *client, const struct backend_key *key)
{
	const struct affinity affinity = {.backend_id = key->backend_id, .seen_ns = bpf_ktime_get_ns()};
	int error = bpf_map_update_elem(&affinities, client, &affinity, BPF_NOEXIST);

	return error != -EEXIST;
}

/*
 * Chooses a backend, of a set: that which `client` has by session affinity, or else one by the Maglev table or at
 * random, which is then remembered. Returns SERVICE_SELECTED or SERVICE_AGREED with `key` and `backend` filled in,
 * SERVICE_NONE, or -DROP_NO_BACKEND, -DROP_NO_LOCAL_BACKEND or -DROP_NO_SLOT.
 */
static __noinline int service_select(const struct frontend_key *frontend_key, const struct client *client,
				     enum service_set set, struct backend_key *key, struct backend *backend)
{
	bool not_own = set & SERVICE_NOT_OWN;
	bool agree = set & SERVICE_AGREE;

	set &= ~(SERVICE_NOT_OWN | SERVICE_AGREE);
	for (int i = 0; i < SELECT_TRIES; i++) {
		const struct frontend *frontend = bpf_map_lookup_elem(&frontends, frontend_key);
		struct affinity_key affine = {};
		struct slot_key slot_key;
		const struct slot *slot;
		__u32 start, count;
		bool sticky, agreed;

		if (!frontend)
			return SERVICE_NONE;
		if (!frontend->slot_count)
			return -DROP_NO_BACKEND;
		start = set == SERVICE_CLUSTER ? frontend->cluster_start : 0;
		count = set == SERVICE_CLUSTER ? frontend->slot_count - start : frontend->local_count;
		if (!count)
			return set == SERVICE_CLUSTER ? -DROP_NO_BACKEND : -DROP_NO_LOCAL_BACKEND;
		agree = agree && frontend->flags & FRONTEND_MAGLEV;
		sticky = frontend->affinity_s && (client->begins || agree);
		if (sticky) {
			affine = (struct affinity_key){.client = client->address, .service_id = frontend->service_id};
			if (affinity_take(&affine, frontend->affinity_s, set, not_own, key, backend))
				return agree ? SERVICE_AGREED : SERVICE_SELECTED;
		}
		/* the last try is at random */
		key->backend_id = agree && i < SELECT_TRIES - 1 ? maglev_backend(frontend, client) : 0;
		agreed = key->backend_id;
		if (!agreed) {
			slot_key.service_id = frontend->service_id;
			slot_key.slot = start + bpf_get_prandom_u32() % count;
			slot = bpf_map_lookup_elem(&slots, &slot_key);
			if (!slot)
				continue;
			key->backend_id = slot->backend_id;
		}
		/* while local slots are rearranged, another node's backend may stand among them */
		if (!take_backend(key, set == SERVICE_HERE, not_own, backend))
			continue;
		if (sticky && (client->begins || agreed) && !affinity_claim(&affine, key))
			continue;
		return agreed ? SERVICE_AGREED : SERVICE_SELECTED;
	}
	return -DROP_NO_SLOT;
}

#endif
