"""The controller node: one limited command per tick, a hold when in doubt."""
