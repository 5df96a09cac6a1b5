"""The Order Service: orders, and the saga that approves or cancels them."""

from services.orders.saga import orders as service

__all__ = ["service"]
