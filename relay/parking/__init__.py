"""What could not be published: set aside in order, in the source's database, until a person replays or drops it."""
