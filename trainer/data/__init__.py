"""Prepared rows on their way into the engine: reading, splitting, ordering, padding.

All of it follows from the spec and its seed alone, so that every engine sees the same batches in the same
order and a run can be taken up at any step.
"""
