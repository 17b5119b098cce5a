"""Pictures for the documents, drawn from real messages and real runs."""
