"""The recorder node: an MCAP bag and one video per episode, and the repair of damaged bags."""
