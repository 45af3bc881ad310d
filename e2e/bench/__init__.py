# SPDX-License-Identifier: Apache-2.0
"""Measured against the peers: `python -m e2e.bench [CASE ...]`, as root.

    stats       medians, spread, bootstrap intervals of paired ratios: pure
    outcome     what a case hands back: samples, figures and their bars: pure
    report      the terminal's table, and build/bench/report.json: pure but for writing it
    machine     what it was measured on
    rounds      the order in which contenders take turns
    tool        the small C programs that do the timing, and how they are asked
    lab         the netns lab, with nodes of the peers beside ours
    contenders  a class for each
    misses      which connections met an endpoint that had been marked not ready: pure
    churn, cni, control_plane, connect, install, nodeport, pods, reuse, sweep, transfer    the cases, a module each

A case is a module with a function `run() -> Outcome`, named in `__main__.CASES`. RESULTS.md keeps the latest figures.
"""
