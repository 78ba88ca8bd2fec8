# SPDX-License-Identifier: Apache-2.0
"""`python -m tierd` is the command `tierd`."""

import sys

from tierd.cli import main

sys.exit(main())
