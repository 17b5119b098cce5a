"""The HTML report of an evaluation, and the videos of its episodes."""
