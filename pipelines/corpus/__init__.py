"""The corpus job: units of a plan read, encoded and committed by Ray workers that are watched and replaced."""
