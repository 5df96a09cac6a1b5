-- What sagas take in any order (a command that undoes, a reply) waits behind nothing of its aggregate when it arrives. Now it
-- does not either when it has been put off, and nothing waits behind it: each is in a lane of its own.
--
-- A service of the former version writes no lane, and looks at none: what it puts off waits as it always has. The same holds
-- for what is here already. deferred_order serves both versions: in an aggregate there are few lanes but its own.
ALTER TABLE relay.deferred ADD COLUMN lane text NOT NULL DEFAULT '';

COMMENT ON COLUMN relay.deferred.lane IS
    'Empty: that of its aggregate, in which one waits for the other. Otherwise its own id: it waits for none, and none for it.';
