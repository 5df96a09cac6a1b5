"""`python -m tests.acceptance.saga_world.caller VERB ...`: what the agency's API does for a caller, in a process alone.

`start SAGA JOURNEY`, with the journey as JSON, or `abort SAGA_ID`: one transaction, and the end.
"""

import asyncio
import os
import sys
from uuid import UUID

from psycopg import AsyncConnection

from tests.acceptance.saga_world.__main__ import plans_pool
from tests.acceptance.saga_world.agency import Agency, Journey
from tests.acceptance.saga_world.plans import Plans


async def main(verb: str, *about: str) -> None:
    """Carry it out."""
    dsn = os.environ["WORLD_DSN"]
    async with plans_pool(dsn) as beside, await AsyncConnection.connect(dsn, autocommit=True) as conn:
        agency = Agency(Plans(beside))
        async with conn.transaction():
            if verb == "start":
                saga, journey = about
                await agency.orchestrator.start(agency.sagas[saga], Journey.model_validate_json(journey), conn)
            else:
                (saga_id,) = about
                await agency.orchestrator.abort(UUID(saga_id), "changed his mind", conn)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
