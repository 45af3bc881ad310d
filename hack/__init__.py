# SPDX-License-Identifier: Apache-2.0
"""What makes things of this checkout: the image, and what tests share of that. Nothing that is installed imports it."""
