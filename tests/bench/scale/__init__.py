# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.scale`: what the daemon costs on hosts of 16 GiB to 16 TiB."""
