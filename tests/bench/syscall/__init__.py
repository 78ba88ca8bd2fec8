# SPDX-License-Identifier: Apache-2.0
"""What it costs to move pages: by physical address, by known or by searched virtual ones."""
