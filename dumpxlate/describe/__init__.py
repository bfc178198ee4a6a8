"""What is known, as plain values ready for JSON, that tables are made from."""
