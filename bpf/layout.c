/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Compiled for its BTF alone, from which bpf/abi.py is generated: an enum that nothing refers to is not in BTF. */
#include "config.h"
#include "maps.h"

struct {
	enum abi_version abi_version;
	enum frontend_flag frontend_flag;
	enum remote_flag remote_flag;
	enum flow_state flow_state;
	enum flow_flag flow_flag;
	enum socket_side socket_side;
	enum drop_reason drop_reason;
	enum counter counter;
	enum connect_time connect_time;
	enum state_index state_index;
} abi_enums;
