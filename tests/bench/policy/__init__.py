# SPDX-License-Identifier: Apache-2.0
"""How right tierd's decisions are: against an oracle, and beside plain reference policies."""
