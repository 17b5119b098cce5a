"""The scripted expert: privileged pick-and-place, and the plans it follows."""
