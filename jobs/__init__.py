"""One file a job: a frozen settings dataclass and a run() that reads as a summary."""
