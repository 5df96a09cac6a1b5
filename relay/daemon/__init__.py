"""The relay itself: sources are read, captured, published, confirmed, reported, and kept going."""
