"""Triops: a local AI assistant runtime in one Python process on Trio.

This page is the public face: what is not listed here may change tomorrow.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
