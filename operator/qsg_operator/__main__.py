"""`python -m qsg_operator`."""

from qsg_operator.main import main

if __name__ == "__main__":
    main()
