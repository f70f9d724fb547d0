"""Consumes MTA status, qualifies it, and pushes what it implies to DeliveryService. Stateless: it owns no storage."""
