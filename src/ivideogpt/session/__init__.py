"""An imagination under way: stepped, forked, taken back, renewed."""

from ivideogpt.session.session import Session, Step
from ivideogpt.session.state import Snapshot

__all__ = ["Session", "Snapshot", "Step"]
