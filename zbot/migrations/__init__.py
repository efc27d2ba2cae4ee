"""The schema, one numbered script per change; the database is brought forward at start."""
