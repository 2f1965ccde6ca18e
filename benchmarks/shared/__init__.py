"""What every suite uses: one format of records, one way to repeat and to resume, facts of the machine, quantiles."""
