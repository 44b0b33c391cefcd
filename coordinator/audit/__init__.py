"""Compare the table with the bucket: what is missing, orphaned or damaged; and recount the table from its facts."""
