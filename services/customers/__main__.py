"""`python -m services.customers`"""

import sys

from services import host
from services.customers.api import CustomersApi
from services.customers.credit import customers
from services.settings import Listen, ServiceSettings


class CustomersSettings(ServiceSettings, env_prefix="CUSTOMERS_"):
    """The service's settings, from the environment: CUSTOMERS_DSN and so on."""

    listen: Listen = "127.0.0.1:8002"


if __name__ == "__main__":
    sys.exit(host.main(customers, CustomersSettings, lambda pool: CustomersApi(pool).router))
