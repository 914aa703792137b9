"""`python -m alloop` is the same program as the `alloop` script."""

from alloop.cli.main import main

if __name__ == "__main__":
    main()
