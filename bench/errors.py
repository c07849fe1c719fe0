"""How a benchmark fails: with words for its user. Knows nothing else."""


class BenchFailed(Exception):
    """The measurement cannot go on; the message says what happened and where to look."""
