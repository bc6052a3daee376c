"""`python -m sark_mw.demo`."""

from __future__ import annotations

import sys

from sark_mw.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
