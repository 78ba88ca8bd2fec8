# SPDX-License-Identifier: Apache-2.0
"""tierd: system-wide memory tiering for Linux hosts with CXL memory."""

__version__ = "0.1.0"
