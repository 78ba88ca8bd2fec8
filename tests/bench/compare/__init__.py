# SPDX-License-Identifier: Apache-2.0
"""Ways of tiering side by side in guests: what each brings, and what it costs."""
