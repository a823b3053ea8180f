"""The oracle: is what Headwater wrote equal to what it was to write?

Two comparisons: each sink against its stream, and each stream against its database. Both fold in SQL of their own and
share nothing with the path that they check, beyond the mapping and the contract.
"""

from headwater.verify.comparison import Comparison, KeyDifference, Keys
from headwater.verify.gaps import Gaps, gaps
from headwater.verify.sink import verify_sink
from headwater.verify.source import Terms, verify_source
from headwater.verify.tables import Workspace

__all__ = [
    "Comparison",
    "Gaps",
    "KeyDifference",
    "Keys",
    "Terms",
    "Workspace",
    "gaps",
    "verify_sink",
    "verify_source",
]
