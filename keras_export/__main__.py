"""`python -m keras_export`: what comes in and goes out is that of `cli.main`."""

import sys

from keras_export.cli import main

if __name__ == "__main__":
    sys.exit(main())
