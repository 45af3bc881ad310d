/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The cgroup programs: sockets of the host's own processes are given a backend when they connect or send, so that no
 * packet of theirs needs translation. What they asked for is kept by socket cookie: answers seem to come from there,
 * and getpeername() says so.
 *
 * A Service without a backend is left as it is: the packet goes out, and to_netdev refuses it, as every kernel can.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "config.h"
#include "maps.h"
#include "service.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ALLOW 1

/* Whether the socket belongs to the namespace whose processes are to be translated. */
static __always_inline bool translated_here(struct bpf_sock_addr *ctx)
{
	__u64 host = config.host_netns_cookie;

	if (config.connect_time == CONNECT_TIME_ALL)
		return true;
	return bpf_get_netns_cookie(ctx) == (host ? host : bpf_get_netns_cookie(NULL));
}

static __always_inline struct socket_key socket_key(struct bpf_sock_addr *ctx, struct address address)
{
	return (struct socket_key){
		.cookie = bpf_get_socket_cookie(ctx),
		.address = address,
		.port_be = ctx->user_port,
		.protocol = ctx->protocol,
	};
}

/* The backend that this UDP socket was given for the same frontend before, if it is still one. */
static __always_inline bool known_backend(const struct socket_key *key, struct socket_peer *backend)
{
	const struct socket_peer *known = bpf_map_lookup_elem(&sockets, key);
	struct backend_key backend_key;

	if (!known)
		return false;
	backend_key.backend_id = known->backend_id;
	if (!bpf_map_lookup_elem(&backends, &backend_key))
		return false;
	*backend = *known;
	return true;
}

static __always_inline bool new_backend(const struct socket_key *key, struct socket_peer *backend)
{
	const struct tuple asked = {.daddr = key->address, .dport_be = key->port_be, .protocol = key->protocol};
	struct frontend_key frontend;
	struct backend_key backend_key = {};
	struct backend selected;

	if (!frontend_at(&asked, &frontend))
		return false;
	if (service_select(&frontend, false, &backend_key, &selected) != SERVICE_SELECTED)
		return false;
	*backend = (struct socket_peer){
		.address = selected.address,
		.port_be = selected.port_be,
		.backend_id = backend_key.backend_id,
	};
	return true;
}

/* Both ways: by frontend, for further datagrams, and by backend, for answers and getpeername(). */
static __always_inline void remember(struct socket_key *key, const struct socket_peer *backend)
{
	struct socket_peer frontend = {
		.address = key->address,
		.port_be = key->port_be,
		.backend_id = backend->backend_id,
	};

	if (key->protocol == IPPROTO_UDP)
		bpf_map_update_elem(&sockets, key, backend, BPF_ANY);
	key->address = backend->address;
	key->port_be = backend->port_be;
	key->side = SOCKET_BACKEND;
	bpf_map_update_elem(&sockets, key, &frontend, BPF_ANY);
}

/* Says in `backend` whom to talk to in place of `address` and the port in `ctx`; false: leave it. */
static __always_inline bool to_backend(struct bpf_sock_addr *ctx, struct address address, struct socket_peer *backend)
{
	struct socket_key key;

	if (!translated_here(ctx) || (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP))
		return false;
	key = socket_key(ctx, address);
	if (key.protocol == IPPROTO_UDP && known_backend(&key, backend))
		return true;
	if (!new_backend(&key, backend))
		return false;
	remember(&key, backend);
	return true;
}

/* Says in `frontend` whom the process believes to talk to, where `address` is its backend; false: leave it. */
static __always_inline bool to_frontend(struct bpf_sock_addr *ctx, struct address address, struct socket_peer *frontend)
{
	struct socket_key key;
	const struct socket_peer *found;

	if (!translated_here(ctx))
		return false;
	key = socket_key(ctx, address);
	key.side = SOCKET_BACKEND;
	found = bpf_map_lookup_elem(&sockets, &key);
	if (!found)
		return false;
	*frontend = *found;
	return true;
}

typedef bool (*translation)(struct bpf_sock_addr *, struct address, struct socket_peer *);

static __always_inline int translate_v4(struct bpf_sock_addr *ctx, translation translate)
{
	struct socket_peer peer;

	if (translate(ctx, address_v4(ctx->user_ip4), &peer)) {
		ctx->user_ip4 = peer.address.word_be[3];
		ctx->user_port = peer.port_be;
	}
	return ALLOW;
}

static __always_inline int translate_v6(struct bpf_sock_addr *ctx, translation translate)
{
	struct address address = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
	struct socket_peer peer;

	if (translate(ctx, address, &peer)) {
		ctx->user_ip6[0] = peer.address.word_be[0];
		ctx->user_ip6[1] = peer.address.word_be[1];
		ctx->user_ip6[2] = peer.address.word_be[2];
		ctx->user_ip6[3] = peer.address.word_be[3];
		ctx->user_port = peer.port_be;
	}
	return ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return translate_v4(ctx, to_backend);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return translate_v6(ctx, to_backend);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return translate_v4(ctx, to_backend);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return translate_v6(ctx, to_backend);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return translate_v4(ctx, to_frontend);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return translate_v6(ctx, to_frontend);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return translate_v4(ctx, to_frontend);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return translate_v6(ctx, to_frontend);
}
