"""Command line: `python -m model_export.quantise`."""

import tyro

from model_export.quantise.quantise_bundle import Quantise, main
from model_export.quantise.quantise_bundle import __doc__ as description

if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Quantise, description=description)))
