"""Tables in files of every kind, read a block of rows at a time, and their features as rows that fits stream."""
