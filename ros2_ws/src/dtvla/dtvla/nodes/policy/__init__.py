"""The policy node: pairs pictures, decides in a thread of its own, serves goals."""
