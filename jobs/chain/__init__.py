"""`osdface run`: a chain of commands as one resumable job.

A step is done when its receipt carries the digest of its commands, their configurations and code, its inputs and the
steps it needs, and what it makes is there. A step that was killed runs again: its commands resume by themselves.
"""

from jobs.chain.file import Chain, ChainStep
from jobs.chain.runner import Planned, Runner, Selection

__all__ = ["Chain", "ChainStep", "Planned", "Runner", "Selection"]
