"""Fuzzing of every parser of outside bytes: `python -m fuzz`, and with bounded time in `test_fuzz.py`.

The property: for any bytes a parser answers with a valid value or with its declared error; it raises nothing else, does not hang, takes no
time or memory out of proportion, and nothing of another session or of a store changes. A target says in `check` what that means for it.
"""
