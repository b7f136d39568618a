"""Promotion: gates, the way to endpoints, rollback and history."""
