"""The lecture's GPT, from bigram to the full Shakespeare model, built from tensorlite's ops alone."""
