# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin: a launcher in C, a warm server, and a one-shot process that runs the same code where there is none.

`plugin` carries out the verbs; `config` and `result` speak the specification, `ranges` and `ipam` allocate addresses,
`delegate` has another plugin do so, `link` makes the pod link over `netlink`, `datapath` holds the pinned programs and
the map of pods, `records` remembers what was made. cni/SPEC.md says what callers may rely on.
"""
