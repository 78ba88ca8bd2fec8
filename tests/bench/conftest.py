# SPDX-License-Identifier: Apache-2.0
"""Benchmarks in a guest use the guests of the guest tests."""

from __future__ import annotations

from guest.conftest import boot, guest, guest_off, pytest_collection_finish, pytest_configure

__all__ = ["boot", "guest", "guest_off", "pytest_collection_finish", "pytest_configure"]
