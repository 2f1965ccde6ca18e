"""`python -m train` and `python -m gemfleet.train`."""

from .entry import main

if __name__ == "__main__":
    raise SystemExit(main())
