# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the main job, shown with real traffic on the lab of namespaces, as a report fit to read.

report      what a step found, and how the terminal shows it
page        the same as one self-contained page
steps       the steps, in order
__main__    runs them
"""
