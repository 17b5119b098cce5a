"""The documentation site: reference pages made from the code, and the checks of every command on it."""
