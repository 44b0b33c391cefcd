"""What Baleen decides, free of I/O: names, references, events as facts, and how facts change the table.

Invariant: nothing here imports more than the standard library, and nothing here reads a clock.
"""
