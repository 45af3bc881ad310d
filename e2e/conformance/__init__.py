# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own network tests on the lab's cluster: which (suite), run (runner), judged and shown (results, pending).

`python -m e2e.conformance --help`, and `make conformance`.
"""
