"""The Inventory Service: what is in stock, and what of it is reserved for orders."""

from services.inventory.reservations import inventory as service

__all__ = ["service"]
