"""The consumer: takes jobs out of Redis, has its engine process answer them, publishes what comes back."""
