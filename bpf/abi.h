/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The contract between the BPF programs and Python: every struct and enum that both sides see, and nothing else.
 *
 * bpf/abi.py is generated from this file's BTF (python -m bpf.layout); make check regenerates and compares it.
 * Addresses are 16 bytes, IPv4 as v4-mapped (::ffff:a.b.c.d), so that one code path serves both families.
 * Padding is explicit and zero: keys are compared byte by byte.
 */
#ifndef CALICO_EBPF_ABI_H
#define CALICO_EBPF_ABI_H

#include <linux/types.h>

#define ABI_LAYOUT(type, bytes) _Static_assert(sizeof(struct type) == (bytes), "layout of struct " #type)

/*
 * The directory of the pins carries it: raise it with every change of a key or a value. What stands in the maps is
 * taken over by the names of fields (bpf/upgrade.py): one that comes to mean something else gets another name, and 0 in
 * a new one means what was before. Values of enums are only added.
 */
enum abi_version {
	ABI_VERSION = 10,
};

struct address {
	__be32 word_be[4];
};
ABI_LAYOUT(address, 16);

/* A packet's five-tuple as it is on the wire at one point of its way. Of an ICMP echo the asker's port is the
 * identifier, and the other one 0. */
struct tuple {
	struct address saddr;
	struct address daddr;
	__be16 sport_be;
	__be16 dport_be;
	__u8 protocol; /* IPPROTO_* */
	__u8 pad[3];
};
ABI_LAYOUT(tuple, 40);

/* --- Services: frontends -> (service, slots), slots or rows of a table -> backend id, backends -> address --- */

/*
 * What a client talks to; with port and protocol 0 a cluster IP as such, whose other ports are refused, or a load
 * balancer's address as such, where the rest of what comes is dropped; with port 0 and ICMP the latter: it answers
 * echo.
 */
struct frontend_key {
	struct address address;
	__be16 port_be;
	__u8 protocol;
	__u8 pad;
};
ABI_LAYOUT(frontend_key, 20);

struct frontend {
	__u32 service_id;
	__u32 slot_count;    /* slots 0 .. slot_count - 1 are filled; 0: the Service has no usable endpoint */
	__u32 local_count;   /* slots 0 .. local_count - 1 of them are this node's: the Local set */
	__u32 cluster_start; /* slots cluster_start .. slot_count - 1 are the Cluster set */
	__u32 flags;         /* enum frontend_flag */
	__u32 affinity_s;    /* for so long after its last connection a client keeps its backend; 0: not at all */
};
ABI_LAYOUT(frontend, 24);

/*
 * A NodePort's address is that of any node: 0.0.0.0 (v4-mapped) or ::, looked up after the packet's own where that is a
 * node's.
 */
enum frontend_flag {
	FRONTEND_CLUSTER_IP = 1 << 0,
	FRONTEND_EXTERNAL = 1 << 1,     /* reached from outside: a NodePort, an external or a load-balancer address */
	FRONTEND_LOCAL = 1 << 2,        /* externalTrafficPolicy Local; of a cluster IP: internalTrafficPolicy Local */
	FRONTEND_DIRECT = 1 << 3,       /* the backend's node answers the client itself */
	FRONTEND_SOURCES = 1 << 4,      /* for those clients alone that `sources` has */
	FRONTEND_HOST_ALLOWED = 1 << 5, /* of FRONTEND_SOURCES: this node's own address is among them */
	FRONTEND_HOST_PORT = 1 << 6,    /* a pod's; under the unspecified address it is met at this node's own alone */
	FRONTEND_MAGLEV = 1 << 7,       /* what comes from outside has a backend by its Maglev table */
};

/*
 * Host ports are frontends with one slot and one backend, the pod, and one id for both. Their entries are the CNI
 * plugin's, told by the id; those with ids below are the controller's.
 */
enum host_port {
	HOST_PORT_IDS = 1 << 30,
};

/* Longest-prefix key: a frontend, whole, and a range of clients that may use it. */
struct source_key {
	__u32 prefix_bits; /* of all that follows: from 160 on, of IPv4 from 256 on */
	struct frontend_key frontend;
	struct address address;
};
ABI_LAYOUT(source_key, 40);

struct source {
	__u32 flags; /* none yet: 0 */
};
ABI_LAYOUT(source, 4);

struct slot_key {
	__u32 service_id;
	__u32 slot;
};
ABI_LAYOUT(slot_key, 8);

struct slot {
	__u32 backend_id;
};
ABI_LAYOUT(slot, 4);

/*
 * A row of a Service's Maglev table: place n of the table is number n % MAGLEV_ROW of row n / MAGLEV_ROW. The place of
 * a client and the backend that has it are the same on every node.
 */
enum maglev {
	MAGLEV_ROW = 32,
};

struct maglev_key {
	__u32 service_id;
	__u32 row;
};
ABI_LAYOUT(maglev_key, 8);

struct maglev_row {
	__u32 backend_ids[MAGLEV_ROW]; /* 0: behind the table's end */
};
ABI_LAYOUT(maglev_row, 128);

struct backend_key {
	__u32 backend_id; /* never 0 */
};
ABI_LAYOUT(backend_key, 4);

struct backend {
	struct address address;
	__be16 port_be;
	__u8 protocol;
	__u8 flags; /* enum backend_flag */
};
ABI_LAYOUT(backend, 20);

enum backend_flag {
	BACKEND_APART = 1 << 0, /* in the Local set alone: no new client of the Cluster set is given it */
};

/*
 * Who has a backend by session affinity: the address from which a client sends. A process that has chosen none yet is
 * known by its network namespace: bpf/cgroup.c makes an address of that.
 */
struct affinity_key {
	struct address client;
	__u32 service_id; /* of all addresses of a Service port, in one family */
};
ABI_LAYOUT(affinity_key, 20);

struct affinity {
	__u32 backend_id;
	__u32 pad;
	__u64 seen_ns; /* CLOCK_MONOTONIC, of the client's last new connection */
};
ABI_LAYOUT(affinity, 16);

/* Which datagram a fragment is of: as it is on the wire at one point of its way, like a tuple. */
struct fragment_key {
	struct address saddr;
	struct address daddr;
	__u32 identification; /* as it is on the wire */
	__u8 protocol;        /* of IPv4; 0: IPv6, whose later fragments do not tell it */
	__u8 pad[3];
};
ABI_LAYOUT(fragment_key, 40);

/* What a datagram's first fragment says, and later ones do not. */
struct fragment {
	__u64 seen_ns;
	__be16 sport_be;
	__be16 dport_be;
	__u8 protocol;
	__u8 is_echo;
	__u8 pad[2];
};
ABI_LAYOUT(fragment, 16);

/* --- Where packets go --- */

struct pod_key {
	struct address address;
};
ABI_LAYOUT(pod_key, 16);

/* A pod of this node. Written by the CNI plugin alone. */
struct pod {
	__u32 ifindex; /* the host end of the pod link */
	__u32 flags;   /* none yet: 0 */
	__u8 pod_mac[6];
	__u8 host_mac[6];
	__u8 pad[4];
	__u64 container_hash; /* first 8 bytes of SHA-256 of the container id: whose entry this is */
};
ABI_LAYOUT(pod, 32);

/* Longest-prefix key: IPv4 prefixes count from bit 96. */
struct remote_key {
	__u32 prefix_bits;
	struct address address;
};
ABI_LAYOUT(remote_key, 20);

/* Another node's pods, or that node itself; or a range of Services, of which only the flags are set. */
struct remote {
	struct address next_hop; /* of plain packets for it: the node's own address, or the router before it */
	struct address node;     /* the node's own address: a tunnel's far end */
	__u32 ifindex;           /* the device of the underlay by which it is reached */
	__u32 overlay_ifindex;   /* the overlay device; 0: there is none */
	__u32 flags;             /* enum remote_flag */
	__u32 pad;
};
ABI_LAYOUT(remote, 48);

enum remote_flag {
	REMOTE_OVERLAY = 1 << 0,         /* packets for it go through the overlay */
	REMOTE_TUNNEL_HANDOVER = 1 << 1, /* outside clients' packets are handed over through the overlay */
	REMOTE_NO_HANDOVER = 1 << 2,     /* they cannot be handed over: that needs a tunnel, and there is none */
	REMOTE_SERVICES = 1 << 3,        /* of Services: what none of them has leads nowhere */
};

struct node_key {
	struct address address;
};
ABI_LAYOUT(node_key, 16);

/* An address of a node: NodePorts are met there. */
struct node {
	__u32 flags; /* enum node_flag */
};
ABI_LAYOUT(node, 4);

enum node_flag {
	NODE_OWN = 1 << 0,           /* this node's, and on its devices */
	NODE_NO_NODE_PORTS = 1 << 1, /* NodePorts are not met at this address; host ports are */
	NODE_MAPPED = 1 << 2,        /* this node's, and on none of its devices: a router translates to and from it */
};

struct peer_key {
	__u8 mac[6];
	__u8 pad[2];
};
ABI_LAYOUT(peer_key, 8);

/* Another node, by its MAC in the underlay: what it sends of outside clients is handed over. */
struct peer {
	struct address address;
};
ABI_LAYOUT(peer, 16);

struct device_key {
	__u32 ifindex; /* 0: each of the pod links */
};
ABI_LAYOUT(device_key, 4);

/* A device by which packets leave this node: of the underlay, or the overlay's; or the pod links. */
struct device {
	struct address v4; /* under which this node speaks there; ::, it has none */
	struct address v6;
	__u32 mtu;   /* in bytes, IP header and all */
	__u32 flags; /* enum device_flag */
	__u8 mac[6]; /* zero where it has none of 6 bytes, and of the overlay and the pod links */
	__u8 pad[2];
};
ABI_LAYOUT(device, 48);

enum device_flag {
	DEVICE_MASQUERADE_V4 = 1 << 0, /* what pods send out of the cluster by it goes under its address */
	DEVICE_MASQUERADE_V6 = 1 << 1,
	DEVICE_OTHER = 1 << 2, /* it is beside the underlay: no other node need know a way to who is behind it */
};

/* By a remote_key: a range outside the cluster to which pods send under their own addresses. */
struct unmasqueraded {
	__u32 flags; /* none yet: 0 */
};
ABI_LAYOUT(unmasqueraded, 4);

/* By a remote_key: a range from which nothing comes in from outside. */
struct denied {
	__u32 flags; /* none yet: 0 */
};
ABI_LAYOUT(denied, 4);

/* --- Flows: two entries each, one for either direction, each carrying the other's key --- */

enum flow_state {
	FLOW_NEW = 0,     /* packets in one direction only */
	FLOW_ESTABLISHED, /* both directions seen */
	FLOW_CLOSING,     /* TCP, and SCTP likewise: a FIN from one side */
	FLOW_CLOSED,      /* TCP: a FIN from both */
	FLOW_RESET, /* TCP: RST; a later segment without it shows that it was not accepted, and revives the flow */
	FLOW_STATES,
};

enum flow_flag {
	FLOW_REPLY = 1 << 0,       /* this entry is for the answering direction */
	FLOW_FIN = 1 << 1,         /* this entry's direction has sent its FIN */
	FLOW_HANDED_OVER = 1 << 2, /* another node sends these packets: by their destination, the answers by `way` */
	FLOW_RST = 1 << 3,         /* either direction has sent an RST, and no second of traffic has disproved it */
	FLOW_FROM_HERE = 1 << 4,   /* what matches it is sent here: from outside it is forged */
};

/* How packets that match an entry leave this node. */
enum way_kind {
	WAY_DESTINATION = 0, /* by their destination: a pod here, another node, the host's stack */
	WAY_ROUTE,           /* by the kernel's route out of the device */
	WAY_NODE,            /* to a node of the same subnet, whose address is `end` */
	WAY_MAC,             /* to the MAC in end[0..5], from the MAC in end[6..11] */
	WAY_TUNNEL,          /* handed over through the overlay, to the node whose address is `end` */
	WAY_HOST, /* into the host's stack, as if it came in by the device: to its MAC in end[0..5], from end[6..11] */
};

struct way {
	__u32 ifindex;
	__u8 kind; /* enum way_kind */
	__u8 pad[3];
	__u8 end[16];
};
ABI_LAYOUT(way, 24);

/*
 * A packet that matches an entry's key leaves as the reverse of that entry's twin: the pair of keys is the whole
 * translation, of either end, and a flow without translation is one whose twin is its own reverse.
 */
struct flow {
	struct tuple twin; /* the key of the other direction's entry */
	__u64 seen_ns;     /* CLOCK_MONOTONIC, refreshed at most once a second */
	__u64 expires_ns;  /* from then on the entry counts as absent */
	__u64 created_ns;
	__u32 backend_id; /* 0: not through a Service */
	__u8 state;       /* enum flow_state */
	__u8 flags;       /* enum flow_flag */
	__u8 pad[2];
	struct way way;
};
ABI_LAYOUT(flow, 96);

/* --- Sockets of the host's own processes, translated at connect and sendmsg --- */

enum socket_side {
	SOCKET_FRONTEND = 0, /* key: what the process talks to; value: the backend that it was given */
	SOCKET_BACKEND,      /* key: the backend; value: what the process believes to talk to */
};

struct socket_key {
	__u64 cookie;
	struct address address;
	__be16 port_be;
	__u8 protocol;
	__u8 side; /* enum socket_side */
	__u8 pad[4];
};
ABI_LAYOUT(socket_key, 32);

struct socket_peer {
	struct address address;
	__be16 port_be;
	__u8 pad[2];
	__u32 backend_id;
	/* Of datagrams to a Service with session affinity: */
	struct address source; /* whence they are sent, :: where the socket has chosen none */
	__u64 seen_ns;         /* CLOCK_MONOTONIC, of the last one; 0: a Service without */
};
ABI_LAYOUT(socket_peer, 48);

/* --- What did not get through, and what was noteworthy --- */

/* Programs return these negated, as their error; they are counted in drops. */
enum drop_reason {
	DROP_NONE = 0,
	DROP_TRUNCATED = 2,    /* a packet or a header is cut short; negated, 1 would be TC_ACT_UNSPEC */
	DROP_BAD_HEADER,       /* a length, version, address, chain of headers or tag that cannot be */
	DROP_SPOOFED,          /* a pod's packet with another's source address, or one from outside with ours */
	DROP_NO_BACKEND,       /* refused: the Service has no usable endpoint */
	DROP_NO_FLOW,          /* refused: mid-stream TCP to a Service, with no flow that says which backend */
	DROP_NO_SLOT,          /* a slot or its backend is missing: the Service was changing, or its maps are damaged */
	DROP_NO_FREE_PORT,     /* every port tried for a colliding flow was taken */
	DROP_FLOWS_FULL,       /* the flow table took no entry */
	DROP_TTL_EXPIRED,      /* TTL or hop limit used up here; the sender is told */
	DROP_FRAGMENT,         /* a later fragment whose first one was not seen, or not served */
	DROP_REWRITE_FAILED,   /* a helper could not change the packet */
	DROP_UNTRANSLATED,     /* a host's packet to a Service, which nobody but a socket hook could have translated */
	DROP_NO_REMOTE,        /* a host's packet into the overlay to an address that no node has */
	DROP_NOT_A_NODE,       /* out of a tunnel from an address that no node has, or of another network */
	DROP_NO_LOCAL_BACKEND, /* a traffic policy Local, or handed over, and no usable endpoint here */
	DROP_PORTS_EXHAUSTED,  /* masquerade: no free port towards that destination */
	DROP_NO_HANDOVER,      /* an outside client's, and the backend's node cannot be handed packets */
	DROP_NO_POD,           /* to a pod that is gone; TCP in mid-stream is refused */
	DROP_TAKING_OVER,      /* of no flow here yet, while those of another layout are taken over: it is sent again */
	DROP_NO_SUCH_PORT,     /* refused: a port that the Service of this cluster IP does not have */
	DROP_NO_SERVICE,       /* an address of the ranges of Services, or a port of a load balancer's, that none has */
	DROP_SOURCE_RANGE,     /* not of the sources for which a load-balancer address is */
	DROP_TOO_BIG,          /* for the link or tunnel that it has to take; the sender is told, where it is to know */
	DROP_DENIED,           /* from a range of the deny list */
	DROP_REASONS,
};

struct drop_key {
	__u32 reason; /* enum drop_reason */
	__u32 ifindex;
};
ABI_LAYOUT(drop_key, 8);

struct drop_count {
	__u64 packets;
	__u64 octets;
};
ABI_LAYOUT(drop_count, 16);

/* Index into counters. */
enum counter {
	COUNTER_FLOWS_CREATED = 0,
	COUNTER_FLOWS_RESTORED,  /* a twin was missing: the flow table evicts live flows, it is too small */
	COUNTER_FLOWS_PICKED_UP, /* mid-stream TCP without an entry, followed from here on */
	COUNTER_PORTS_REWRITTEN, /* a live collision was given another source port */
	COUNTER_REFUSALS,        /* RST or ICMP error sent */
	COUNTER_HANDED_OVER,     /* flows of outside clients handed to another node */
	COUNTER_MASQUERADED,     /* flows that left the cluster under the node's address */
	COUNTERS,
};

/* The controllers' probe of layer 2, whose answers have a foreign source as well. */
enum probe {
	PROBE_PORT = 20206, /* UDP */
};

/* --- Load-time constants, patched into .rodata --- */

struct config {
	__u64 host_netns_cookie; /* 0: the initial network namespace */
	__u64 tcp_new_ns;        /* time-outs since the last packet, by protocol and state */
	__u64 tcp_established_ns;
	__u64 tcp_closing_ns;
	__u64 tcp_closed_ns;
	__u64 udp_new_ns;
	__u64 udp_established_ns;
	__u32 connect_time; /* enum connect_time */
	__u32 mark;         /* set on what the programs send through a device, so that they know it again there */
	__u32 masquerade_port_min;
	__u32 masquerade_port_count; /* 0: no masquerade */
	__u32 coarse_clock;          /* the kernel has bpf_ktime_get_coarse_ns(): 5.11 */
	__u32 overlay_port;          /* UDP, of the tunnels between nodes */
	__u32 closes_udp;            /* the kernel closes sockets of the host's whose backend has gone */
	__u32 maglev_size;           /* places of a Maglev table */
};
ABI_LAYOUT(config, 88);

enum connect_time {
	CONNECT_TIME_HOST = 0, /* translate the sockets of the host's own network namespace */
	CONNECT_TIME_ALL,      /* those of pods as well */
};

/* The one map for what must be remembered over a restart: index into state, a __u64 each. */
enum state_index {
	STATE_NEXT_BACKEND_ID = 0, /* controller */
	STATE_NEXT_SERVICE_ID,
	STATE_TAKING_OVER_UNTIL_NS, /* loader, CLOCK_MONOTONIC: until then another layout's flows may be missing here */
	STATES,
};

#endif
