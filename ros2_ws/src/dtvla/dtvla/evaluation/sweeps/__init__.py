"""Several evaluations that differ in one thing: delays, variations."""
