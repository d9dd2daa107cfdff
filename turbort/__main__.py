"""`python -m turbort` is `turbort`."""

from turbort.cli import main

if __name__ == "__main__":
    main()
