"""`python -m services.inventory`"""

import sys

from services import host
from services.inventory.api import InventoryApi
from services.inventory.reservations import inventory
from services.settings import Listen, ServiceSettings


class InventorySettings(ServiceSettings, env_prefix="INVENTORY_"):
    """The service's settings, from the environment: INVENTORY_DSN and so on."""

    listen: Listen = "127.0.0.1:8003"


if __name__ == "__main__":
    sys.exit(host.main(inventory, InventorySettings, lambda pool: InventoryApi(pool).router))
