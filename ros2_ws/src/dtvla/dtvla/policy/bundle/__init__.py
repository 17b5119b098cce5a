"""The policy bundle: its manifest `policy.json`, its hashes and its signature."""
