"""`python -m services.orders`"""

import sys

from services import host
from services.orders.api import OrdersApi
from services.orders.saga import orders
from services.settings import Listen, ServiceSettings


class OrdersSettings(ServiceSettings, env_prefix="ORDERS_"):
    """The service's settings, from the environment: ORDERS_DSN and so on."""

    listen: Listen = "127.0.0.1:8001"


if __name__ == "__main__":
    sys.exit(host.main(orders, OrdersSettings, lambda pool: OrdersApi(pool).router))
