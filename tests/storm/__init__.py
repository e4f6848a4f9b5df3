"""`make storm`: many consumers with the real engine, many jobs, and something killed every few seconds."""
