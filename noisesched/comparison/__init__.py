"""Networks under schedules, samplers and numbers of calls: measured, compared, and reported."""
