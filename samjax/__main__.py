"""`python -m samjax` is the command `samjax`."""

from samjax.cli.main import main

if __name__ == '__main__':
    main()
