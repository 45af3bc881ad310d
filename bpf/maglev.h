/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A choice that every node makes alike: a hash of the client gives a place in the Service's Maglev table, and that the
 * backend (Eisenbud et al., NSDI 2016). The tables are the controller's: controller/maglev.py.
 */
#ifndef CALICO_EBPF_MAGLEV_H
#define CALICO_EBPF_MAGLEV_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "maps.h"

/* Who asks, and where; of a process of the host's its address alone, as which session affinity knows it. */
struct client {
	struct address address;
	struct address asked;
	__be16 port_be;
	__u8 begins; /* a connection, or a flow */
};

/* The finaliser of MurmurHash3. Nodes of one cluster must hash alike: it stays as it is. */
static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash ^= word;
	hash ^= hash >> 33;
	hash *= 0xff51afd7ed558ccdULL;
	hash ^= hash >> 33;
	hash *= 0xc4ceb9fe1a85ec53ULL;
	return hash ^ hash >> 33;
}

static __always_inline __u64 mix_address(__u64 hash, const struct address *address)
{
	const __be32 *word_be = address->word_be;

	hash = mix(hash, (__u64)bpf_ntohl(word_be[0]) << 32 | bpf_ntohl(word_be[1]));
	return mix(hash, (__u64)bpf_ntohl(word_be[2]) << 32 | bpf_ntohl(word_be[3]));
}

/*
 * Of the connection, or, with session affinity, of the client alone. One port of a client's has other backends at other
 * addresses of a Service: at one backend they would be two connections that only their ways tell apart.
 */
static __always_inline __u64 client_hash(const struct client *client, bool affinity)
{
	__u64 hash = mix_address(0, &client->address);

	return affinity ? hash : mix(mix_address(hash, &client->asked), bpf_ntohs(client->port_be));
}

/* The id of the backend that a client's place in a Service's table has; 0: the table is not there. */
static __always_inline __u32 maglev_backend(const struct frontend *frontend, const struct client *client)
{
	__u32 place = client_hash(client, frontend->affinity_s) % config.maglev_size;
	const struct maglev_key key = {.service_id = frontend->service_id, .row = place / MAGLEV_ROW};
	const struct maglev_row *row = bpf_map_lookup_elem(&maglev, &key);

	return row ? row->backend_ids[place % MAGLEV_ROW] : 0;
}

#endif
