"""Compile the kernels ahead of their first use, as when an image is built: python -m tokenizer.engine."""

from __future__ import annotations

import logging
import sys

from tokenizer.engine.library import find_kernels


def main() -> int:
    """Say what codecs will run on; 0 also where that is torch."""
    logging.basicConfig(format="%(message)s")
    kernels = find_kernels()
    sys.stdout.write(f"engine: {'torch' if kernels is None else kernels.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
