/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose an address is: a pod's of this node, another node's or its pods', this node's own, a Service's. */
#ifndef CALICO_EBPF_OWNER_H
#define CALICO_EBPF_OWNER_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

static __always_inline const struct pod *pod_at(const struct address *address)
{
	return bpf_map_lookup_elem(&pods, address);
}

/* What the longest prefix says that holds an address: it is another node's or its pods', or one of Services. */
static __always_inline const struct remote *remote_at(const struct address *address)
{
	struct remote_key key = {.prefix_bits = 128, .address = *address};

	return bpf_map_lookup_elem(&remotes, &key);
}

static __always_inline bool of_a_node(const struct remote *remote)
{
	return remote && !(remote->flags & REMOTE_SERVICES);
}

/* An address of a node, this one or another; NULL: of none. */
static __always_inline const struct node *node_at(const struct address *address)
{
	return bpf_map_lookup_elem(&nodes, address);
}

static __always_inline bool own_address(const struct address *address)
{
	const struct node *node = node_at(address);

	return node && node->flags & NODE_OWN;
}

/* Whether an address leads to this node: its own, or one that a router maps to that. */
static __always_inline bool leads_here(const struct address *address)
{
	const struct node *node = node_at(address);

	return node && node->flags & (NODE_OWN | NODE_MAPPED);
}

/* Whether an address is one of our pods' or the node's own: nobody sends under it but this node. */
static __always_inline bool is_here(const struct address *address)
{
	return pod_at(address) || own_address(address);
}

/* A pod, or a node by the address by which pods reach it. */
static __always_inline bool of_the_cluster(const struct address *address)
{
	return is_here(address) || of_a_node(remote_at(address));
}

#endif
