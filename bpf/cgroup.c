/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The cgroup programs: sockets of the host's own processes are given a backend when they connect or send, so that no
 * packet of theirs needs translation. What they asked for is kept by socket cookie: answers seem to come from there,
 * and getpeername() says so.
 *
 * A Service without a backend is left as it is: the packet goes out, and to_netdev refuses or drops it, as every kernel
 * can. So is a load-balancer address that is not for this node, which to_netdev drops; and what no hook is asked for,
 * SCTP say, which to_netdev translates.
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

/* Whether the socket is of the host's own network namespace. */
static __always_inline bool of_the_host(struct bpf_sock_addr *ctx)
{
	__u64 host = config.host_netns_cookie;

	return bpf_get_netns_cookie(ctx) == (host ? host : bpf_get_netns_cookie(NULL));
}

/* Whether the socket belongs to the namespace whose processes are to be translated. */
static __always_inline bool translated_here(struct bpf_sock_addr *ctx)
{
	return config.connect_time == CONNECT_TIME_ALL || of_the_host(ctx);
}

/*
 * Whether a socket may use a frontend. It has no source address yet: of the host's own the controller has judged; a
 * pod's is left to from_pod where it counts.
 */
static __always_inline bool socket_allowed(struct bpf_sock_addr *ctx, const struct frontend *frontend)
{
	if (!(frontend->flags & FRONTEND_SOURCES))
		return true;
	return frontend->flags & FRONTEND_HOST_ALLOWED && of_the_host(ctx);
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

/*
 * Whether a socket's datagrams to a Service with session affinity go on as a flow, which keeps its backend whatever its
 * client would be given now: from the same address, and with no longer pauses than other flows of UDP bear.
 */
static __always_inline bool flow_goes_on(struct socket_peer *known, const struct address *source)
{
	__u64 now = bpf_ktime_get_ns();

	if (!same_address(&known->source, source) || (__s64)(now - known->seen_ns) >= (__s64)config.udp_established_ns)
		return false;
	known->seen_ns = now;
	return true;
}

/*
 * The backend that this UDP socket was given for the same frontend before, if it is still one. Without affinity it has
 * no time-out: nobody can tell it from a new choice.
 */
static __always_inline bool known_backend(const struct socket_key *key, const struct address *source,
					  struct socket_peer *backend)
{
	struct socket_peer *known = bpf_map_lookup_elem(&sockets, key);
	struct backend_key backend_key;

	if (!known || (known->seen_ns && !flow_goes_on(known, source)))
		return false;
	backend_key.backend_id = known->backend_id;
	if (!bpf_map_lookup_elem(&backends, &backend_key))
		return false;
	*backend = *known;
	return true;
}

/*
 * Who a socket's process is to session affinity: the address from which it sends. Where it has not chosen one, that is
 * the kernel's to choose later: then all of a network namespace are one client, whose address is of ::/32, as nobody's.
 */
static __always_inline struct client client_of(struct bpf_sock_addr *ctx, const struct address *source)
{
	struct client client = {.address = *source, .begins = 1};
	__u64 cookie;

	if (is_unspecified(source)) {
		cookie = bpf_get_netns_cookie(ctx);
		client.address = (struct address){{0, cookie >> 32, cookie, 0}};
	}
	return client;
}

static __always_inline bool new_backend(struct bpf_sock_addr *ctx, const struct socket_key *key, struct client client,
					struct socket_peer *backend)
{
	const struct tuple asked = {.daddr = key->address, .dport_be = key->port_be, .protocol = key->protocol};
	struct frontend_key frontend_key;
	const struct frontend *frontend = frontend_for_own(&asked, &frontend_key);
	struct backend_key backend_key = {};
	struct backend selected;

	if (!frontend || !socket_allowed(ctx, frontend))
		return false;
	if (service_select(&frontend_key, &client, set_for_own(frontend), &backend_key, &selected) != SERVICE_SELECTED)
		return false;
	*backend = (struct socket_peer){
		.address = selected.address,
		.port_be = selected.port_be,
		.backend_id = backend_key.backend_id,
		.seen_ns = frontend->affinity_s ? bpf_ktime_get_ns() : 0,
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

/*
 * Says in `backend` whom to talk to in place of `address` and the port in `ctx`; false: leave it. `source` is the
 * address from which the socket sends, or :: where it has not chosen one.
 */
static __always_inline bool to_backend(struct bpf_sock_addr *ctx, struct address address, struct address source,
				       struct socket_peer *backend)
{
	struct socket_key key;

	if (!translated_here(ctx) || (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP))
		return false;
	key = socket_key(ctx, address);
	if (key.protocol == IPPROTO_UDP && known_backend(&key, &source, backend))
		return true;
	if (!new_backend(ctx, &key, client_of(ctx, &source), backend))
		return false;
	backend->source = source;
	remember(&key, backend);
	return true;
}

/*
 * The same at connect. A connected UDP socket keeps the backend that it is given for as long as it lasts: only one that
 * is closed when that has gone is given any. Others' datagrams are translated one by one, by to_netdev or from_pod, but
 * those to the host's own addresses, which do not come by there.
 */
static __always_inline bool connect_to_backend(struct bpf_sock_addr *ctx, struct address address, struct address source,
					       struct socket_peer *backend)
{
	if (ctx->protocol == IPPROTO_UDP && !(of_the_host(ctx) && (config.closes_udp || own_address(&address))))
		return false;
	return to_backend(ctx, address, source, backend);
}

/* Says in `frontend` whom the process believes to talk to, where `address` is its backend; false: leave it. */
static __always_inline bool to_frontend(struct bpf_sock_addr *ctx, struct address address, struct address source,
					struct socket_peer *frontend)
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

/* `source` is of what is sent alone. */
typedef bool (*translation)(struct bpf_sock_addr *, struct address, struct address source, struct socket_peer *);

static __always_inline int translate_v4(struct bpf_sock_addr *ctx, __be32 source_be, translation translate)
{
	struct address source = source_be ? address_v4(source_be) : (struct address){};
	struct socket_peer peer;

	if (translate(ctx, address_v4(ctx->user_ip4), source, &peer)) {
		ctx->user_ip4 = peer.address.word_be[3];
		ctx->user_port = peer.port_be;
	}
	return ALLOW;
}

static __always_inline int translate_v6(struct bpf_sock_addr *ctx, struct address source, translation translate)
{
	struct address address = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
	struct socket_peer peer;

	if (translate(ctx, address, source, &peer)) {
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
	return translate_v4(ctx, ctx->sk->src_ip4, connect_to_backend);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	const __u32 *bound = ctx->sk->src_ip6;

	return translate_v6(ctx, (struct address){{bound[0], bound[1], bound[2], bound[3]}}, connect_to_backend);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return translate_v4(ctx, ctx->msg_src_ip4, to_backend);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	const __u32 *named = ctx->msg_src_ip6;

	return translate_v6(ctx, (struct address){{named[0], named[1], named[2], named[3]}}, to_backend);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return translate_v4(ctx, 0, to_frontend);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return translate_v6(ctx, (struct address){}, to_frontend);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return translate_v4(ctx, 0, to_frontend);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return translate_v6(ctx, (struct address){}, to_frontend);
}
