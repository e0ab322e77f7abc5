"""The pages that show results, made from result files alone."""
