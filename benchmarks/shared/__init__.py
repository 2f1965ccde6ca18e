"""What every suite uses: suites and their options, rounds, one format of records, sections, processes, models."""
