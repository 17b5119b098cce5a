"""Tools of this repository: set-up, figures of the documents, benchmarks. Nothing here travels to a robot."""
