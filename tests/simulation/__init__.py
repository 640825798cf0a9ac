"""Whole queue managers, initiators and applications in virtual time, under faults drawn from a seed (`python -m simulation --help`)."""
