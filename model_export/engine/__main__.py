"""Command line: `python -m model_export.engine`."""

import tyro

from model_export.engine.bundle_engines import __doc__ as description
from model_export.engine.bundle_engines import main

if __name__ == "__main__":
    raise SystemExit(tyro.cli(main, description=description))
