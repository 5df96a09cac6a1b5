"""The demo: the whole stack on servers of its own, its orders, its chaos, and the audit of what came of them."""
