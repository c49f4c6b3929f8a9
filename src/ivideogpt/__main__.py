"""`python -m ivideogpt` is the `ivideogpt` command."""

import sys

from ivideogpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
