"""The Customer Service: customers, their credit limits, and the credit reserved for orders."""

from services.customers.credit import customers as service

__all__ = ["service"]
