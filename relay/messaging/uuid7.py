"""Ids that sort by the time at which they were made."""

import secrets
import time
from uuid import UUID


def uuid7() -> UUID:
    """A UUID of version 7: milliseconds since 1970, then chance. Source: RFC 9562, section 5.7."""
    bits = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return UUID(int=bits & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62)
